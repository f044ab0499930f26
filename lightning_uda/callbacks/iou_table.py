"""The results of every evaluation: its confusion matrix in the run folder, and what is derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import rich
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor, distributed

from lightning_uda.callbacks.logger_media import log_confusion
from lightning_uda.metrics import (
    MIOU_NOTE,
    Evaluation,
    best_of,
    best_text,
    columns_of,
    evaluate,
    image_scores_file,
    in_scope,
    keep_confusion,
    keep_image_scores,
    mean_column,
    scope_label,
    score_label,
)
from lightning_uda.tables import Row, append_row, console_table, percent, percent_bar

IOU_FILE = "iou.csv"
"""Name of the table in a run folder: step, stage, then in percent miou, miou_<subset> and iou_<class name>; the same
with `_<scope>` for each further scope of the scores, such as a size (`_at_512x1024`)."""


class IoUTable(Callback):
    """Keeps the confusion matrix of every validation and test, and reports the IoU per class.

    Each evaluation writes its matrix (pixel counts, rows = ground truth) into the run folder (`trainer.log_dir`;
    nothing is written without a logger) as `confusions/val_step_000800.csv`, `confusions/test_step_...` when testing,
    `..._at_512x1024.csv` or `..._within_3px_of_borders.csv` for a further scope of the scores: another size of the
    labels, or pixels near borders or away from them. It is never replaced: the second evaluation of a step in one run
    folder is `confusions/val_step_000800.2.csv`. Predictions of classes that count as others (`scoring.merged`) are
    counted as those.

    The mean IoU of each image is kept beside it, as `image_scores/val_step_000800.csv`, the worst first:
    `validation_step` may give "miou" (N,), which stays on the device until the evaluation is over. Classes that an
    image's labels lack don't count there.

    All else is derived from the matrices: a row of `iou.csv`, and `val/iou_<class name>` and `val/miou_<subset>`
    (`test/...` when testing) in the loggers, all in percent; a class that occurs neither in labels nor in predictions
    is left out. W&B gets the matrix of all pixels too. During training an evaluation prints one line, such as
    `step 400  mIoU 31.2`. The table at the end is that of the last step; below it stands the best evaluation, as one
    that target labels choose. Where predictions are scored in further scopes too, every name comes again with each:
    `miou_at_512x1024`, `iou_road_at_512x1024`.

    The module must offer `label_space` and `confusions()`: metrics whose `compute()` is the confusion matrix of all
    processes together, of all pixels at the size of the labels (`None`), then of further scopes by name. It logs
    `val/miou` and `val/miou_<scope>` itself.

    Args:
        print_table: Whether the full table is printed at the end of fit, validate and test.
    """

    def __init__(self, print_table: bool = True) -> None:
        self.print_table = print_table
        self._last: tuple[int, str, list[Evaluation]] | None = None
        self._images: list[tuple[list[str], Tensor]] = []  # of the evaluation: names and scores of each batch
        self._mious: dict[int, float] = {}  # by step, since the start of training
        self._checkpoint_step = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets the evaluations of an earlier run; one that resumes gets them back from its checkpoint."""
        if stage == "fit":
            self._last, self._mious = None, {}

    def state_dict(self) -> dict[str, Any]:
        """The mIoUs so far by step, of which the best is reported at the end of training."""
        return {"mious": self._mious}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self._mious = dict(state_dict["mious"])

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remembers the step of a checkpoint, which the trainer forgets when it only evaluates."""
        self._checkpoint_step = checkpoint["global_step"]

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the images of the evaluation before."""
        self._images = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remembers the scores of a batch's images, without waiting for them."""
        if isinstance(outputs, Mapping) and "miou" in outputs and "name" in batch:
            self._images.append((batch["name"], outputs["miou"]))

    on_test_batch_end = on_validation_batch_end

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
        """Prints the table of the last validation of a training run, and which one was the best."""
        self._print_last(trainer, "validation")
        best = best_of(self._mious.items()) if len(self._mious) > 1 else None
        if best is not None and self.print_table and trainer.is_global_zero:
            rich.get_console().print(f"Best mIoU: {best_text(*best)}", highlight=False)

    def _report(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        step = trainer.global_step or self._checkpoint_step
        matrices = {scope: metric.compute() for scope, metric in pl_module.confusions().items()}
        evaluations = [evaluate(matrix, pl_module.label_space, scope) for scope, matrix in matrices.items()]
        self._last = (step, stage, evaluations)
        images = self._image_scores()
        if trainer.state.fn == "fit":
            self._mious[step] = evaluations[0].means[mean_column()]
        _log(pl_module, stage, evaluations)
        folder = trainer.log_dir if trainer.loggers else None
        if not trainer.is_global_zero:
            return
        if folder is not None:
            _write(Path(folder), stage, step, matrices, evaluations, images)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log_confusion(logger, f"{stage}/confusion_matrix", matrices[None], pl_module.label_space, step)
        if trainer.state.fn == "fit" or not self.print_table:
            summary = "  ".join(evaluation.summary() for evaluation in evaluations)
            rich.get_console().print(f"step {step}  {summary}", highlight=False)

    def _print_last(self, trainer: pl.Trainer, what: str) -> None:
        if self._last is not None and self.print_table and trainer.is_global_zero:
            step, stage, evaluations = self._last
            console = rich.get_console()
            console.print(iou_table(f"IoU per class, {what} at step {step}", evaluations))
            console.print(MIOU_NOTE, style="dim", highlight=False)
            if warning := evaluations[0].lacking(stage):
                console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)

    def _image_scores(self) -> list[tuple[str, float]]:
        """Names and mean IoUs in percent of the images of all processes."""
        names = [name for names, _ in self._images for name in names]
        values = (100 * torch.cat([scores for _, scores in self._images])).tolist() if names else []
        found = list(zip(names, values, strict=True))
        self._images = []
        if not distributed.is_initialized():
            return found
        by_rank: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(by_rank, found)
        return [score for scores in by_rank for score in scores]


def iou_table(title: str, evaluations: Sequence[Evaluation]) -> Table:
    """Classes and means of an evaluation for the console; each further scope has a column in it."""
    space = evaluations[0].label_space
    scopes = [scope_label(other.scope) for other in evaluations[1:] if other.scope]
    rows = []
    for i, (name, color) in enumerate(zip(space.classes, space.palette, strict=True)):
        values = [one.iou[i] for one in evaluations]
        rows.append(Row(name, [*_cells(values), percent(evaluations[0].share[i])], color))
    for name in evaluations[0].means:
        values = [one.means[name] for one in evaluations]
        rows.append(Row(score_label(name), [*_cells(values), ""], None, "bold", section=name == mean_column()))
    return console_table(title, ("class", "IoU %", "", *scopes, "pixels %"), rows)


def _cells(values: Sequence[float]) -> list[RenderableType]:
    return [percent(values[0]), percent_bar(values[0]), *map(percent, values[1:])]


def _log(module: Any, stage: str, evaluations: Sequence[Evaluation]) -> None:
    by_module = {in_scope(mean_column(), evaluation.scope) for evaluation in evaluations}
    values = {name: value for name, value in columns_of(evaluations).items() if name not in by_module}
    present = {f"{stage}/{name}": value for name, value in values.items() if value == value}
    module.log_dict(present, sync_dist=True)


def _write(
    run: Path,
    stage: str,
    step: int,
    matrices: Mapping[str | None, Tensor],
    evaluations: Sequence[Evaluation],
    images: Sequence[tuple[str, float]],
) -> None:
    for scope, matrix in matrices.items():
        file = keep_confusion(run, stage, step, scope, matrix, evaluations[0].label_space.classes)
        if scope is None and images:
            keep_image_scores(image_scores_file(file), images)
    append_row(run / IOU_FILE, {"step": step, "stage": stage} | columns_of(evaluations))
