"""Writes predicted label maps as images, for viewing, for other programs and for the Cityscapes test server."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import rich
from lightning.pytorch.callbacks import Callback
from PIL import Image

from lightning_uda.label_spaces import CITYSCAPES_IDS, LabelSpace
from lightning_uda.ranges import SIDE, ranged

Array = npt.NDArray[np.uint8]

_IMAGE_SUFFIX = "_leftImg8bit"


class PredictionFormat(ABC):
    """How predictions are written: `<output_dir>/<folder>/<file name>.png`.

    Attributes:
        folder: Folder below the writer's.
        zip: Whether the folder is also packed into `<output_dir>/<folder>.zip` once all predictions are there.
    """

    folder: str
    zip: bool = False

    def check(self, label_space: LabelSpace) -> None:  # noqa: B027  most formats take any label space
        """Raises a ValueError if predictions of this label space can't be written so."""

    def file_name(self, name: str) -> str:
        """Name of the file, without extension, for the image called `name`."""
        return name

    @abstractmethod
    def encode(self, pred: Array, label_space: LabelSpace) -> Array:
        """Pixels of the file: uint8 (H, W) or (H, W, 3), of train ids uint8 (H, W)."""


class TrainIds(PredictionFormat):
    """Train ids: `id/<name>.png`."""

    folder = "id"

    def encode(self, pred: Array, label_space: LabelSpace) -> Array:
        """The train ids themselves."""
        return pred


class Colors(PredictionFormat):
    """Colours of the classes: `color/<name>.png`."""

    folder = "color"

    def encode(self, pred: Array, label_space: LabelSpace) -> Array:
        """RGB, uint8 (H, W, 3)."""
        return label_space.colorize(pred)


class CityscapesLabelIds(PredictionFormat):
    """Cityscapes label ids as its test server wants them: `label_ids/<name>_pred_labelIds.png`, 2048 x 1024.

    The ending `_leftImg8bit` of an image's name is left out. Class names say which id is written, so label spaces of 19
    and of 16 classes will do.

    Args:
        zip: Whether `label_ids.zip` is made, ready to be sent in.
        size: Height and width that the server expects, checked for each prediction; `None` takes any.
    """

    folder = "label_ids"

    @ranged(size=SIDE)
    def __init__(self, zip: bool = False, size: tuple[int, int] | None = (1024, 2048)) -> None:
        self.zip = zip
        self.size = size

    def check(self, label_space: LabelSpace) -> None:
        """Checks that all classes are Cityscapes classes.

        Raises:
            ValueError: If one isn't.
        """
        if unknown := [name for name in label_space.classes if name not in CITYSCAPES_IDS.values()]:
            raise ValueError(
                f"CityscapesLabelIds: label space {label_space.name!r} has classes {unknown}, which have no Cityscapes "
                "id. Predict with a network of Cityscapes classes, or leave this output out."
            )

    def file_name(self, name: str) -> str:
        """`<name>_pred_labelIds`."""
        return f"{name.removesuffix(_IMAGE_SUFFIX)}_pred_labelIds"

    def encode(self, pred: Array, label_space: LabelSpace) -> Array:
        """Label ids, uint8 (H, W).

        Raises:
            ValueError: If the prediction hasn't the size the server expects.
        """
        if self.size is not None and pred.shape != tuple(self.size):
            raise ValueError(
                f"CityscapesLabelIds: found a prediction of {pred.shape[0]} x {pred.shape[1]} (height x width), the "
                f"test server expects {self.size[0]} x {self.size[1]}. Predict the original images, or set `size: "
                "null` to write any size."
            )
        written: Array = label_space.raw_id_table(CITYSCAPES_IDS)[pred]
        return written


class PredictionWriter(Callback):
    """Writes predictions as PNG files: train ids (`id/<name>.png`) and palette colours (`color/<name>.png`).

    Files have the names and sizes of the original images. A folder that already holds predictions is refused before
    predicting starts. A zip file appears when all predictions are in it, or not at all. `predict_step` must return
    `{"pred": uint8 (N, H, W), "name": list of N names}`, and the module must offer `label_space`.

    For the Cityscapes test server: `outputs: [{class_path: CityscapesLabelIds, init_args: {zip: true}}]`.

    Args:
        output_dir: Folder to write to; made if it isn't there. `None` stands for `predictions` in the run folder.
        outputs: What is written of each prediction: any of `TrainIds`, `Colors`, `CityscapesLabelIds`; `None` stands
            for the first two.
    """

    def __init__(self, output_dir: str | Path | None = None, outputs: Sequence[PredictionFormat] | None = None) -> None:
        outputs = (TrainIds(), Colors()) if outputs is None else tuple(outputs)
        folders = [output.folder for output in outputs]
        if not folders or len(set(folders)) != len(folders):
            raise ValueError(
                f"PredictionWriter: found outputs for the folders {folders}; expected at least one, each of its own."
            )
        self._given = None if output_dir is None else Path(output_dir)
        self.outputs = outputs
        self._written: set[Path] = set()

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Makes the folders.

        Raises:
            FileExistsError: If one of them already holds PNG files, or its zip file is there.
            ValueError: If predictions of the module's classes can't be written so.
        """
        if stage != "predict":
            return
        run = trainer.log_dir or trainer.default_root_dir  # all ranks have to ask together
        self.output_dir = self._given or Path(run) / "predictions"
        self._written.clear()
        for output in self.outputs:
            output.check(pl_module.label_space)
        if trainer.is_global_zero:
            for output in sorted(self.outputs, key=lambda output: output.folder):
                self._claim(output)
        trainer.strategy.barrier("prediction_writer")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes the predictions of one batch.

        Raises:
            ValueError: If two images of the set have the same name.
        """
        for name, pred in zip(outputs["name"], outputs["pred"].cpu().numpy(), strict=True):
            for output in self.outputs:
                path = self.output_dir / output.folder / f"{output.file_name(name)}.png"
                if path in self._written:
                    raise ValueError(
                        f"Two images are named {name!r}; expected distinct names, as one prediction would overwrite "
                        "the other. Rename one, or predict the folders one by one."
                    )
                self._written.add(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(output.encode(pred, pl_module.label_space)).save(path)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Packs what is to be packed, when all ranks have written their files, and says where they are."""
        trainer.strategy.barrier("prediction_writer")
        if trainer.is_global_zero:
            for output in self.outputs:
                if output.zip:
                    pack(self.output_dir / output.folder, self._zip_file(output))
            zips = [self._zip_file(output) for output in self.outputs if output.zip]
            places = ", ".join(map(str, [*(self.output_dir / output.folder for output in self.outputs), *zips]))
            rich.get_console().print(f"predictions: {places}", soft_wrap=True, highlight=False, markup=False)

    def _claim(self, output: PredictionFormat) -> None:
        folder = self.output_dir / output.folder
        if found := sum(1 for _ in folder.rglob("*.png")):
            raise FileExistsError(
                f"{folder} already holds {found} PNG files, which predictions might overwrite; "
                "give another output_dir, or move them away."
            )
        if output.zip and self._zip_file(output).exists():
            raise FileExistsError(
                f"{self._zip_file(output)} is already there and would be overwritten; "
                "give another output_dir, or move it away."
            )
        folder.mkdir(parents=True, exist_ok=True)

    def _zip_file(self, output: PredictionFormat) -> Path:
        return self.output_dir / f"{output.folder}.zip"


def pack(folder: Path, archive: Path) -> None:
    """Packs the PNG files of a folder into a zip file, which takes its name when it is complete.

    Args:
        folder: Folder whose PNG files are packed, by their names relative to it.
        archive: The file; a partial one has `.part` added to its name and is removed if packing stops.
    """
    part = archive.with_name(archive.name + ".part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:  # PNG is compressed already
            for path in sorted(folder.rglob("*.png")):
                file.write(path, path.relative_to(folder).as_posix())
        os.replace(part, archive)
    finally:
        part.unlink(missing_ok=True)
