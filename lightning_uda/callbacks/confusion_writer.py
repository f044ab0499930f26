"""Keeps the confusion matrix of the latest evaluation, so that runs can be scored together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_uda.metrics import at_size, write_confusion


class ConfusionWriter(Callback):
    """Writes `confusion_val.csv` (`confusion_test.csv` when testing) into the run folder at each evaluation.

    The file holds pixel counts with class names, rows = ground truth; it is replaced by the next evaluation. Those of
    several runs, such as the ten folds of an NTHU city, are read by `lightning_uda.metrics.read_confusion` and scored
    together by `score_folds`. Scores at further sizes come as `confusion_val_at_512x1024.csv`. Nothing is written
    without a logger.

    The module must offer `label_space`, `confusion` and, if it has further sizes, `confusions_at`, as for `IoUTable`.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the matrices of a validation, but not of the sanity check."""
        if not trainer.sanity_checking:
            _write(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the matrices of a test."""
        _write(trainer, pl_module, "test")


def _write(trainer: pl.Trainer, module: Any, stage: str) -> None:
    folder = trainer.log_dir if trainer.loggers else None
    for size, metric in {None: module.confusion, **dict(getattr(module, "confusions_at", {}).items())}.items():
        confusion = metric.compute()
        if folder is not None and trainer.is_global_zero:
            path = Path(folder) / f"{at_size(f'confusion_{stage}', size)}.csv"
            write_confusion(path, confusion, module.label_space.classes)
