"""Writes predictions as image files, and as videos where they are of videos."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import rich
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from lightning_uda.callbacks.prediction_formats import Colors, Prediction, PredictionFormat, TrainIds
from lightning_uda.data.check import counted
from lightning_uda.data.dataset import Frame
from lightning_uda.files import PARTIAL, require_folder_place
from lightning_uda.label_spaces import LabelSpace

_VIDEO = ".mp4"
_CODEC = "mp4v"  # OpenCV has it everywhere


class PredictionWriter(Callback):
    """Writes predictions as PNG files: train ids (`id/<name>.png`) and palette colours (`color/<name>.png`).

    Files have the names, folders and sizes of the original images. Colours and overlays of a video become a video again
    (`color/<name>.mp4`), of its size and rate; its ids and confidences are written frame by frame
    (`id/<name>/000000.png`), as a video would change them, and so is all of a video of an odd height or width, which
    the codec can't hold, and of a run of several processes.

    A folder that already holds predictions is refused before predicting starts. A zip file, and a video, appears when
    all predictions are in it, or not at all. `predict_step` must return `{"pred": uint8 (N, H, W), "name": list of N
    names}`, for `Confidence` "confidence" too, and the module must offer `label_space`.

    For the Cityscapes test server: `outputs: [{class_path: CityscapesLabelIds, init_args: {zip: true}}]`.

    Args:
        output_dir: Folder to write to; made if it isn't there. `None` stands for `predictions` in the run folder.
        outputs: What is written of each prediction: any of `TrainIds`, `Colors`, `Overlay`, `Confidence`, `RawIds`,
            `CityscapesLabelIds`; `None` stands for the first two.
        videos: Whether videos are written; else all of them is written frame by frame.
    """

    def __init__(
        self,
        output_dir: str | Path | None = None,
        outputs: Sequence[PredictionFormat] | None = None,
        videos: bool = True,
    ) -> None:
        outputs = (TrainIds(), Colors()) if outputs is None else tuple(outputs)
        folders = [output.folder for output in outputs]
        if not folders or len(set(folders)) != len(folders):
            raise ValueError(
                f"PredictionWriter: found outputs for the folders {folders}; expected at least one, each of its own."
            )
        self._given = None if output_dir is None else Path(output_dir)
        self.outputs = outputs
        self.videos = videos
        self._written: set[Path] = set()
        self._counts: Counter[str] = Counter()
        self._open: dict[Path, cv2.VideoWriter] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Makes the folders, and asks for what the formats need.

        Raises:
            OSError: If one of them already holds PNG files or videos, its zip file is there, or it can't be made.
            ValueError: If predictions of the module's classes can't be written so.
        """
        if stage != "predict":
            return
        run = trainer.log_dir or trainer.default_root_dir  # all ranks have to ask together
        self.output_dir = self._given or Path(run) / "predictions"
        self._written.clear()
        self._counts.clear()
        for output in self.outputs:
            output.check(pl_module.label_space)
        if any(output.needs_confidence for output in self.outputs):
            pl_module.gives_confidence = True
        if any(output.needs_image for output in self.outputs):
            trainer.datamodule.keep_originals = True  # type: ignore[attr-defined]
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
            OSError: If a video can't be written.
            ValueError: If two images of the set have the same name.
        """
        for i, (name, labels) in enumerate(zip(outputs["name"], outputs["pred"].cpu().numpy(), strict=True)):
            confidence = outputs["confidence"][i].float().cpu().numpy() if "confidence" in outputs else None
            image = batch["original"][i] if "original" in batch else None
            frame: Frame | None = batch["frame"][i] if "frame" in batch else None
            self._counts["image" if frame is None else "frame"] += 1
            self._counts["video"] += frame is not None and frame.number == 0
            self._write(name, Prediction(labels, confidence, image), frame, pl_module.label_space, trainer.world_size)

    def _write(
        self, name: str, prediction: Prediction, frame: Frame | None, label_space: LabelSpace, world_size: int
    ) -> None:
        odd = any(side % 2 for side in prediction.labels.shape)
        as_video = frame is not None and self.videos and world_size == 1 and not odd
        for output in self.outputs:
            pixels = output.encode(prediction, label_space)
            if frame is not None and as_video and output.is_for_eyes:
                self._add_to_video(self.output_dir / output.folder / f"{frame.video}{_VIDEO}", frame, pixels)
                continue
            path = self.output_dir / output.folder / f"{output.file_name(name)}.png"
            self._claim_file(path, name)
            Image.fromarray(pixels).save(path)

    def _claim_file(self, path: Path, name: str) -> None:
        if path in self._written:
            raise ValueError(
                f"Two images are named {name!r}; expected distinct names, as one prediction would overwrite "
                "the other. Rename one, or predict the folders one by one."
            )
        self._written.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)

    def _add_to_video(self, path: Path, frame: Frame, pixels: npt.NDArray[np.uint8]) -> None:
        if path not in self._open:
            self._claim_file(path, frame.video)
            height, width, _ = pixels.shape
            codec = cv2.VideoWriter.fourcc(*_CODEC)
            self._open[path] = cv2.VideoWriter(str(_partial(path)), codec, frame.fps, (width, height))
            if not self._open[path].isOpened():
                raise OSError(
                    f"{path}: OpenCV can't write this video here. Give --frames, for PNG files of its frames."
                )
        self._open[path].write(pixels[..., ::-1])
        if frame.number == frame.frames - 1:
            self._finish(path)

    def _finish(self, path: Path) -> None:
        self._open.pop(path).release()
        os.replace(_partial(path), path)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Packs what is to be packed, when all ranks have written their files, and says what is where."""
        for path in list(self._open):  # of videos that were predicted in part
            self._finish(path)
        trainer.strategy.barrier("prediction_writer")
        counts = {
            what: int(
                trainer.strategy.reduce(torch.tensor(self._counts[what], device=pl_module.device), reduce_op="sum")
            )
            for what in ("image", "video", "frame")
        }
        if trainer.is_global_zero:
            for output in self.outputs:
                if output.zip:
                    pack(self.output_dir / output.folder, self._zip_file(output))
            zips = [self._zip_file(output) for output in self.outputs if output.zip]
            places = ", ".join(map(str, [*(self.output_dir / output.folder for output in self.outputs), *zips]))
            text = f"predictions of {_in_words(counts)}: {places}"
            rich.get_console().print(text, soft_wrap=True, highlight=False, markup=False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Takes unfinished videos away."""
        while self._open:
            path, writer = self._open.popitem()
            writer.release()
            _partial(path).unlink(missing_ok=True)

    def _claim(self, output: PredictionFormat) -> None:
        folder = self.output_dir / output.folder
        for ending, what in ((".png", "PNG files"), (_VIDEO, "videos")):
            if found := sum(1 for _ in folder.rglob(f"*{ending}")):
                raise FileExistsError(
                    f"{folder} already holds {found} {what}, which predictions might overwrite; "
                    "give another output_dir, or move them away."
                )
        if output.zip and self._zip_file(output).exists():
            raise FileExistsError(
                f"{self._zip_file(output)} is already there and would be overwritten; "
                "give another output_dir, or move it away."
            )
        require_folder_place(folder, "PredictionWriter")
        folder.mkdir(parents=True, exist_ok=True)

    def _zip_file(self, output: PredictionFormat) -> Path:
        return self.output_dir / f"{output.folder}.zip"


def _partial(path: Path) -> Path:
    """Where a video is written; its ending tells OpenCV the kind."""
    return path.with_name(f"{path.stem}{PARTIAL}{path.suffix}")


def _in_words(counts: dict[str, int]) -> str:
    videos = f"{counted(counts['video'], 'video')} ({counted(counts['frame'], 'frame')})"
    images = counted(counts["image"], "image")
    return f"{images} and {videos}" if counts["image"] and counts["frame"] else videos if counts["frame"] else images


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
