"""IoU of every class: on the console, in the loggers and in `iou.csv` of the run folder."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import rich
from lightning.pytorch.callbacks import Callback
from rich.bar import Bar
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lightning_uda.data.label_spaces import LabelSpace
from lightning_uda.metrics import iou_per_class, mean_iou

IOU_FILE = "iou.csv"
"""Name of the table in a run folder: step, stage, then in percent miou, miou_<subset> and iou_<class name>."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation measured; all values are in percent, NaN where there is nothing to measure.

    Attributes:
        label_space: The classes.
        iou: IoU of each class.
        share: Share of each class in the ground-truth pixels.
        means: Mean IoU over all classes as `miou`, and over each subset as `miou_<subset>`.
    """

    label_space: LabelSpace
    iou: list[float]
    share: list[float]
    means: dict[str, float]

    @classmethod
    def from_confusion(cls, confusion: Tensor, label_space: LabelSpace) -> Evaluation:
        """Derives everything from one (C, C) confusion matrix whose rows are ground truth."""
        iou = 100 * iou_per_class(confusion)
        truth = confusion.cpu().double().sum(dim=1)
        means = {"miou": float(mean_iou(iou))}
        for subset in label_space.subsets:
            means[f"miou_{subset}"] = float(mean_iou(iou, label_space.subset_indices(subset)))
        return cls(label_space, iou.tolist(), (100 * truth / truth.sum()).tolist(), means)

    def columns(self) -> dict[str, float]:
        """The means, then `iou_<class name>` for each class."""
        return self.means | {
            f"iou_{name}": value for name, value in zip(self.label_space.classes, self.iou, strict=True)
        }

    def summary(self) -> str:
        """The means in one line, such as `mIoU 31.2  mIoU (13) 40.1`."""
        return "  ".join(f"{_mean_label(name)} {_percent(value)}" for name, value in self.means.items())

    def table(self, title: str) -> Table:
        """All classes and means as a table for the console."""
        table = Table(title=title, title_style="bold", title_justify="left", header_style="dim", box=HORIZONTALS)
        table.add_column("class", no_wrap=True)
        table.add_column("IoU %", justify="right")
        table.add_column("", width=20)
        table.add_column("pixels %", justify="right", style="dim")
        for name, color, iou, share in zip(
            self.label_space.classes, self.label_space.palette, self.iou, self.share, strict=True
        ):
            swatch = Text.assemble(("██", "rgb({},{},{})".format(*color)), " ", name)
            table.add_row(swatch, _percent(iou), _bar(iou), _percent(share))
        table.add_section()
        for name, value in self.means.items():
            table.add_row(_mean_label(name), _percent(value), _bar(value), "", style="bold")
        return table


class IoUTable(Callback):
    """Reports IoU per class after every validation and test.

    Each evaluation appends a row to `iou.csv` in the run folder (`trainer.log_dir`; nothing is written without a
    logger) and logs `val/iou_<class name>` and `val/miou_<subset>` (`test/...` when testing), all in percent; a class
    that occurs neither in labels nor in predictions is left out. During training an evaluation prints one line, such as
    `step 400  mIoU 31.2`.

    The module must offer `label_space` and `confusion` (a metric whose `compute()` is the confusion matrix, rows =
    ground truth).

    Args:
        print_table: Whether the full table is printed at the end of fit, validate and test.
    """

    def __init__(self, print_table: bool = True) -> None:
        self.print_table = print_table
        self._last: tuple[int, Evaluation] | None = None
        self._checkpoint_step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the evaluation of an earlier run."""
        self._last = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remembers the step of a checkpoint, which the trainer forgets when it only evaluates."""
        self._checkpoint_step = checkpoint["global_step"]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports a validation, but not the sanity check."""
        if not trainer.sanity_checking:
            self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports a test."""
        self._report(trainer, pl_module, "test")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the table of a validation outside training."""
        if trainer.state.fn == "validate":
            self._print_last(trainer, "validation")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the table of the test."""
        self._print_last(trainer, "test")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the table of the last validation of a training run."""
        self._print_last(trainer, "validation")

    def _report(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        step = trainer.global_step or self._checkpoint_step
        evaluation = Evaluation.from_confusion(pl_module.confusion.compute(), pl_module.label_space)
        self._last = (step, evaluation)
        values = {f"{stage}/{name}": value for name, value in evaluation.columns().items() if name != "miou"}
        pl_module.log_dict({name: value for name, value in values.items() if value == value}, sync_dist=True)
        folder = trainer.log_dir if trainer.loggers else None
        if not trainer.is_global_zero:
            return
        if folder is not None:
            append_row(Path(folder) / IOU_FILE, {"step": step, "stage": stage} | evaluation.columns())
        if trainer.state.fn == "fit" or not self.print_table:
            rich.get_console().print(f"step {step}  {evaluation.summary()}", highlight=False)

    def _print_last(self, trainer: pl.Trainer, what: str) -> None:
        if self._last is not None and self.print_table and trainer.is_global_zero:
            step, evaluation = self._last
            rich.get_console().print(evaluation.table(f"IoU per class, {what} at step {step}"))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a CSV file with one header, keeping all earlier rows.

    Columns that the file lacks are added to it. The new file takes the place of the old in one move, so that an
    interruption never leaves half a table.

    Args:
        path: The file; made if it isn't there.
        row: Column to value; floats are rounded to four places, NaN becomes an empty cell.
    """
    rows: list[Mapping[str, Any]] = []
    columns = list(row)
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = list(dict.fromkeys([*(reader.fieldnames or []), *row]))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows([*rows, {name: _cell(value) for name, value in row.items()}])
    os.replace(part, path)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else round(value, 4)
    return value


def _mean_label(column: str) -> str:
    """`mIoU`, or `mIoU (13)` for the subset 13."""
    return "mIoU" if column == "miou" else f"mIoU ({column.removeprefix('miou_')})"


def _percent(value: float) -> str:
    return "-" if value != value else f"{value:.1f}"


def _bar(value: float) -> Bar:
    return Bar(size=100, begin=0, end=0 if value != value else value, width=20, color="cyan")
