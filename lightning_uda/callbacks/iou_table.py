"""IoU of every class: on the console, in the loggers and in `iou.csv` of the run folder."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
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

from lightning_uda.label_spaces import LabelSpace
from lightning_uda.metrics import at_size, iou_per_class, mean_iou, mean_label

IOU_FILE = "iou.csv"
"""Name of the table in a run folder: step, stage, then in percent miou, miou_<subset> and iou_<class name>; the same
with `_at_<size>` for each further size that predictions are scored at."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation measured; all values are in percent, NaN where there is nothing to measure.

    Attributes:
        label_space: The classes.
        iou: IoU of each class.
        share: Share of each class in the ground-truth pixels.
        means: Mean IoU over all classes as `miou`, and over each subset as `miou_<subset>`.
        size: Size that labels were brought to, such as "512x1024"; `None` if they kept theirs.
    """

    label_space: LabelSpace
    iou: list[float]
    share: list[float]
    means: dict[str, float]
    size: str | None = None

    @classmethod
    def from_confusion(cls, confusion: Tensor, label_space: LabelSpace, size: str | None = None) -> Evaluation:
        """Derives everything from one (C, C) confusion matrix whose rows are ground truth."""
        iou = 100 * iou_per_class(confusion)
        truth = confusion.cpu().double().sum(dim=1)
        means = {"miou": float(mean_iou(iou))}
        for subset in label_space.subsets:
            means[f"miou_{subset}"] = float(mean_iou(iou, label_space.subset_indices(subset)))
        return cls(label_space, iou.tolist(), (100 * truth / truth.sum()).tolist(), means, size)

    def columns(self) -> dict[str, float]:
        """The means, then `iou_<class name>` for each class; all with `_at_<size>` if there is a size."""
        classes = {f"iou_{name}": value for name, value in zip(self.label_space.classes, self.iou, strict=True)}
        return {at_size(name, self.size): value for name, value in (self.means | classes).items()}

    def summary(self) -> str:
        """The means in one line, such as `mIoU 31.2  mIoU (13) 40.1`."""
        return "  ".join(
            f"{mean_label(at_size(name, self.size))} {_percent(value)}" for name, value in self.means.items()
        )

    def table(self, title: str, others: Sequence[Evaluation] = ()) -> Table:
        """All classes and means as a table for the console; each other evaluation has a column in it."""
        table = Table(title=title, title_style="bold", title_justify="left", header_style="dim", box=HORIZONTALS)
        table.add_column("class", no_wrap=True)
        table.add_column("IoU %", justify="right")
        table.add_column("", width=20)
        for other in others:
            table.add_column(f"at {other.size}", justify="right")
        table.add_column("pixels %", justify="right", style="dim")
        for i, (name, color) in enumerate(zip(self.label_space.classes, self.label_space.palette, strict=True)):
            swatch = Text.assemble(("██", "rgb({},{},{})".format(*color)), " ", name)
            at_others = [_percent(other.iou[i]) for other in others]
            table.add_row(swatch, _percent(self.iou[i]), _bar(self.iou[i]), *at_others, _percent(self.share[i]))
        table.add_section()
        for name, value in self.means.items():
            at_others = [_percent(other.means[name]) for other in others]
            table.add_row(mean_label(name), _percent(value), _bar(value), *at_others, "", style="bold")
        return table


class IoUTable(Callback):
    """Reports IoU per class after every validation and test.

    Each evaluation appends a row to `iou.csv` in the run folder (`trainer.log_dir`; nothing is written without a
    logger) and logs `val/iou_<class name>` and `val/miou_<subset>` (`test/...` when testing), all in percent; a class
    that occurs neither in labels nor in predictions is left out. During training an evaluation prints one line, such as
    `step 400  mIoU 31.2`. Where predictions are scored at further sizes too, every name comes again with the size:
    `miou_at_512x1024`, `iou_road_at_512x1024`.

    The module must offer `label_space` and `confusion` (a metric whose `compute()` is the confusion matrix, rows =
    ground truth). Its `confusions_at`, if it has one, maps names of further sizes to such metrics.

    Args:
        print_table: Whether the full table is printed at the end of fit, validate and test.
    """

    def __init__(self, print_table: bool = True) -> None:
        self.print_table = print_table
        self._last: tuple[int, list[Evaluation]] | None = None
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
        evaluations = _evaluate(pl_module)
        self._last = (step, evaluations)
        columns = {name: value for evaluation in evaluations for name, value in evaluation.columns().items()}
        by_module = {at_size("miou", evaluation.size) for evaluation in evaluations}
        values = {f"{stage}/{name}": value for name, value in columns.items() if name not in by_module}
        pl_module.log_dict({name: value for name, value in values.items() if value == value}, sync_dist=True)
        folder = trainer.log_dir if trainer.loggers else None
        if not trainer.is_global_zero:
            return
        if folder is not None:
            append_row(Path(folder) / IOU_FILE, {"step": step, "stage": stage} | columns)
        if trainer.state.fn == "fit" or not self.print_table:
            summary = "  ".join(evaluation.summary() for evaluation in evaluations)
            rich.get_console().print(f"step {step}  {summary}", highlight=False)

    def _print_last(self, trainer: pl.Trainer, what: str) -> None:
        if self._last is not None and self.print_table and trainer.is_global_zero:
            step, (evaluation, *others) = self._last
            rich.get_console().print(evaluation.table(f"IoU per class, {what} at step {step}", others))


def _evaluate(module: Any) -> list[Evaluation]:
    """What the module measured: at the size of the labels, then at further sizes."""
    metrics = {None: module.confusion, **dict(getattr(module, "confusions_at", {}).items())}
    return [Evaluation.from_confusion(metric.compute(), module.label_space, size) for size, metric in metrics.items()]


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


def _percent(value: float) -> str:
    return "-" if value != value else f"{value:.1f}"


def _bar(value: float) -> Bar:
    return Bar(size=100, begin=0, end=0 if value != value else value, width=20, color="cyan")
