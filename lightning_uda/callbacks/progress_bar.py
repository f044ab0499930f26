"""Lightning's bar, over the optimiser steps of a run; in lines of text where the output is no terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import lightning.pytorch as pl
import rich
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import MetricsTextColumn, RichProgressBarTheme
from rich.progress import Task, TaskID
from rich.text import Text

from lightning_uda.ranges import COUNT_OR_NONE, ranged

Item = TypeVar("Item")


class StepProgressBar(RichProgressBar):
    """Shows how far a run is, how long it takes and what it measures.

    One bar counts `trainer.max_steps`, so a resumed run starts where it stopped. Metrics logged with `prog_bar=True`
    stand beside it by their short names. They are read only at logging steps, when the loggers fetch them from the
    device anyway, so that no other step waits for the device.

    Where the output is no terminal (a file, a pipe, CI), ten lines of text are printed instead.

    Args:
        refresh_rate: How often per second the display is redrawn, at most; 0 shows nothing.

    Raises:
        ValueError: If the rate is negative.
    """

    @ranged(refresh_rate=COUNT_OR_NONE)
    def __init__(self, refresh_rate: int = 4) -> None:
        theme = RichProgressBarTheme(progress_bar="cyan", progress_bar_finished="green", progress_bar_pulse="cyan")
        super().__init__(refresh_rate, theme=theme)
        self._metrics: dict[str, Any] = {}
        self._read_at = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar over all steps at the step the run starts from."""
        super().on_train_start(trainer, pl_module)
        if self.progress is not None:
            total = trainer.max_steps if trainer.max_steps > 0 else math.inf
            self.train_progress_bar_id = self.progress.add_task("training", total=total, completed=trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the bar as it is: it counts steps, not epochs."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar to the optimiser steps made so far."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What is shown: short names and values in few digits, as they were at the last logging step or evaluation."""
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        step = trainer.global_step
        if not trainer.training or (interval and step % interval == 0 and step != self._read_at):
            self._metrics, self._read_at = _short_metrics(trainer), step
        return self._metrics

    def follow(self, items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
        """Yields items under a bar of their own, for what other callbacks do between steps.

        Args:
            items: What is worked through.
            title: Text before the bar, about ten characters.
            total: Number of items.
        """
        self._init_progress(self.trainer)
        task = None if self.progress is None else self._add_task(total, title)
        for done, item in enumerate(items, start=1):
            yield item
            self._update(task, done)
        if self.progress is not None and task is not None:
            self.progress.update(task, visible=False)
            self.refresh()

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        """Lightning's columns with a short bar and without the speed, to leave room for the metrics."""
        description, bar, count, time, _ = super().configure_columns(trainer)
        bar.bar_width = 16
        self._metric_component = _MetricsInOneLine(trainer, "bold", "  ", ".3f")  # Lightning adds it after these
        return [description, bar, count, time]

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None:
            self.progress.speed_estimate_period = 600  # seconds, so that the time left counts evaluations in
            self.progress.live.transient |= _is_plain()  # else the bars stand once more below the lines

    def _update(self, progress_bar_id: TaskID | None, current: int, visible: bool = True, hard: bool = False) -> None:
        """Every movement of every bar; prints a line at each tenth of the way where there is no terminal."""
        task = next((t for t in self.progress.tasks if t.id == progress_bar_id), None) if self.progress else None
        before = 0 if task is None else task.completed
        super()._update(progress_bar_id, current, visible, hard)
        evaluations = (self.val_progress_bar_id, self.val_sanity_progress_bar_id)
        if task is None or not task.total or not _is_plain():
            return
        if self.trainer.state.fn == "fit" and progress_bar_id in evaluations:
            return
        if int(10 * current / task.total + 1e-9) > int(10 * before / task.total + 1e-9):
            metrics = _short_metrics(self.trainer) if progress_bar_id == self.train_progress_bar_id else {}
            rich.get_console().print(_line(task, metrics), highlight=False, soft_wrap=True)


class _MetricsInOneLine(MetricsTextColumn):
    """Lightning's column of metrics, cut off at the edge of the terminal rather than wrapped into a narrow block."""

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


def _is_plain() -> bool:
    console = rich.get_console()
    return console.is_dumb_terminal or not (console.is_terminal or console.is_jupyter)


def _line(task: Task, metrics: dict[str, str]) -> str:
    """A bar as text: `training 400/800   50%  0:01:12, 0:01:09 left  loss source 0.250  miou 31.250`."""
    time = str(timedelta(seconds=int(task.elapsed or 0)))
    if not task.finished and task.time_remaining is not None:
        time += f", {timedelta(seconds=int(task.time_remaining))} left"
    count = f"{task.description} {task.completed:>{len(str(task.total))}.0f}/{task.total}"
    return "  ".join([count, f"{task.percentage:3.0f}%", time, *(f"{name} {value}" for name, value in metrics.items())])


def _short_metrics(trainer: pl.Trainer) -> dict[str, str]:
    """Last part of each metric's name, and its value in few digits; what was evaluated comes before the losses."""
    metrics = sorted(trainer.progress_bar_metrics.items(), key=lambda item: item[0].startswith("train/"))
    return {name.rsplit("/", 1)[-1].replace("_", " "): _number(float(value)) for name, value in metrics}


def _number(value: float) -> str:
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.1e}" if small or abs(value) >= 1e4 else f"{value:.3f}"
