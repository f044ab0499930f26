"""Writes predicted label maps as images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from PIL import Image

_FOLDERS = ("color", "id")


class PredictionWriter(Callback):
    """Writes `<output_dir>/id/<name>.png` (train ids) and `<output_dir>/color/<name>.png` (palette colours).

    Files have the names and sizes of the original images. A folder that already holds predictions is refused before
    predicting starts. `predict_step` must return `{"pred": uint8 (N, H, W), "name": list of N names}`, and the module
    must offer `label_space`.

    Args:
        output_dir: Folder to write to; made if it isn't there.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self._written: set[str] = set()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes the folders.

        Raises:
            FileExistsError: If one of them already holds PNG files.
        """
        if stage != "predict":
            return
        self._written.clear()
        if trainer.is_global_zero:
            for folder in _FOLDERS:
                self._claim(self.output_dir / folder)
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
            if name in self._written:
                raise ValueError(
                    f"Two images are named {name!r}; expected distinct names, as one prediction would overwrite the "
                    "other. Rename one, or predict the folders one by one."
                )
            self._written.add(name)
            _save(pred, self.output_dir / "id" / f"{name}.png")
            _save(pl_module.label_space.colorize(pred), self.output_dir / "color" / f"{name}.png")

    @staticmethod
    def _claim(folder: Path) -> None:
        if found := sum(1 for _ in folder.rglob("*.png")):
            raise FileExistsError(
                f"{folder} already holds {found} PNG files, which predictions might overwrite; "
                "give another output_dir, or move them away."
            )
        folder.mkdir(parents=True, exist_ok=True)


def _save(array: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
