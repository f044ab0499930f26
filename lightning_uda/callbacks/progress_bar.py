"""One bar over the optimiser steps of a run, and one while evaluating."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import lightning.pytorch as pl
import rich
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

_LABEL_WIDTH = 10
_PLAIN_LINES = 10
_SINGULAR = {"steps": "step", "batches": "batch", "images": "image"}

Item = TypeVar("Item")


class StepProgressBar(ProgressBar):
    """Shows how far a run is, how fast it goes and what it measures.

    One bar counts `trainer.max_steps`, so a resumed run starts where it stopped; a second bar comes up while
    validating, testing or predicting. Metrics logged with `prog_bar=True` stand below as `name value` pairs. They are
    read only at logging steps, when the loggers fetch them from the device anyway, so the bar adds no host sync.
    Everything goes through `rich.get_console()`: what other callbacks print there appears above the bars.

    Where the output is no terminal (a file, a pipe, CI, a notebook), ten plain lines are printed instead.

    Args:
        refresh_per_second: How often the display is redrawn, at most.
    """

    def __init__(self, refresh_per_second: float = 4.0) -> None:
        super().__init__()
        if refresh_per_second <= 0:
            raise ValueError(f"Found refresh_per_second {refresh_per_second}; expected a number above 0.")
        self.refresh_per_second = refresh_per_second
        self._enabled = True
        self._progress: _BarsWithMetrics | None = None
        self._train_task: TaskID | None = None
        self._eval_task: TaskID | None = None
        self._plain: _PlainProgress | None = None
        self._last_read = -math.inf

    def disable(self) -> None:
        """Shows nothing from now on."""
        self._enabled = False

    def enable(self) -> None:
        """Undoes `disable`."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the bars."""
        if self._enabled:
            rich.get_console().print(*args, **kwargs)

    # training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar over all steps at the step the run starts from."""
        self._open_train(trainer.global_step, _total_steps(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar; fetches metrics at logging steps alone."""
        step = trainer.global_step
        if self._progress is not None and self._train_task is not None:
            self._progress.update(self._train_task, completed=step)
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and step % every == 0:
                self._read_metrics(trainer)
        elif self._plain is not None and self._plain.is_due(step):
            self._plain.print_line(step, trainer.progress_bar_metrics)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the finished bar on the screen."""
        if self._progress is not None:
            self._progress.metrics = _short_metrics(trainer.progress_bar_metrics)
        self._close()

    # evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar of one evaluation."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._open_eval("checking" if trainer.sanity_checking else "validating", batches, trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Moves the evaluation bar."""
        self._advance_eval()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the evaluation bar and shows what was measured."""
        if self._progress is not None and self._train_task is not None:
            self._read_metrics(trainer, force=True)
        self._close_eval(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar of the test."""
        self._open_eval("testing", trainer.num_test_batches, trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Moves the test bar."""
        self._advance_eval()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the test bar."""
        self._close_eval(trainer)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar of the prediction."""
        self._open_eval("predicting", trainer.num_predict_batches, trainer)

    def on_predict_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Moves the prediction bar."""
        self._advance_eval()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the prediction bar."""
        self._close_eval(trainer)

    # what other callbacks do between steps

    def follow(self, items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
        """Yields items under a bar of their own.

        Args:
            items: What is worked through.
            title: Text before the bar, about ten characters.
            total: Number of items.
        """
        progress, plain = self._live_progress(), None
        task = None if progress is None else progress.add_task(title, total=total, unit="images")
        if progress is None and self._enabled:
            plain = _PlainProgress(title, total, 0, "images")
        for item in items:
            yield item
            if progress is not None and task is not None:
                progress.advance(task)
            elif plain is not None:
                plain.advance()
        if progress is not None and task is not None:
            progress.remove_task(task)

    # whatever happens

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the terminal back."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Gives the terminal back before the error is printed."""
        self._close()

    def _open_train(self, step: int, total: int | None) -> None:
        if (progress := self._live_progress()) is not None:
            self._train_task = progress.add_task("training", completed=step, total=total)
        elif self._enabled:
            self._plain = _PlainProgress("step", total, step)

    def _open_eval(self, description: str, batches: Any, trainer: pl.Trainer) -> None:
        total = _finite_sum(batches)
        if (progress := self._live_progress()) is not None:
            self._eval_task = progress.add_task(description, total=total, unit="batches")
        elif self._enabled and trainer.state.fn != TrainerFn.FITTING:
            self._plain = _PlainProgress(description, total, 0)

    def _advance_eval(self) -> None:
        if self._progress is not None and self._eval_task is not None:
            self._progress.advance(self._eval_task)
        elif self._plain is not None and self._plain.label != "step":
            self._plain.advance()

    def _close_eval(self, trainer: pl.Trainer) -> None:
        if self._progress is not None and self._eval_task is not None and trainer.state.fn == TrainerFn.FITTING:
            self._progress.remove_task(self._eval_task)
            self._eval_task = None
        if trainer.state.fn != TrainerFn.FITTING:
            self._close()

    def _read_metrics(self, trainer: pl.Trainer, force: bool = False) -> None:
        now = time.monotonic()
        if self._progress is None or (now - self._last_read < 1 / self.refresh_per_second and not force):
            return
        self._last_read = now
        self._progress.metrics = _short_metrics(trainer.progress_bar_metrics)

    def _live_progress(self) -> _BarsWithMetrics | None:
        """The running display, started if need be; none if switched off or not on a terminal."""
        console = rich.get_console()
        if not self._enabled or not console.is_terminal or console.is_dumb_terminal:
            return None
        if self._progress is None:
            self._progress = _BarsWithMetrics(console, self.refresh_per_second)
            self._progress.start()
        return self._progress

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._plain = None, None
        self._train_task, self._eval_task = None, None


class _BarsWithMetrics(Progress):
    """Progress bars with a line of `name value` pairs below."""

    def __init__(self, console: rich.console.Console, refresh_per_second: float) -> None:
        self.metrics: dict[str, str] = {}
        super().__init__(
            TextColumn(f"[bold]{{task.description:<{_LABEL_WIDTH}}}"),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green", pulse_style="cyan"),
            _CountColumn(),
            _TimeColumn(),
            _SpeedColumn(),
            console=console,
            refresh_per_second=refresh_per_second,
            speed_estimate_period=120,
            expand=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the metrics indented to where the bars begin."""
        yield self.make_tasks_table(self.tasks)
        if self.metrics:
            pairs = [Text.assemble((name, "dim"), " ", (value, "bold")) for name, value in self.metrics.items()]
            yield Padding(Text("   ").join(pairs), (0, 0, 0, _LABEL_WIDTH + 1))


class _CountColumn(ProgressColumn):
    """`400/800`."""

    def render(self, task: Task) -> Text:
        done = f"{task.completed:.0f}"
        return Text(done if task.total is None else f"{done}/{task.total:.0f}", style="bold", justify="right")


class _TimeColumn(ProgressColumn):
    """`0:01:12 (0:00:48 left)`."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        text = Text(_clock(task.elapsed))
        if not task.finished and task.time_remaining is not None:
            text.append(f" ({_clock(task.time_remaining)} left)", style="dim")
        return text


class _SpeedColumn(ProgressColumn):
    """`9.8 steps/s`."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "steps")
        speed = task.finished_speed or task.speed
        return Text("" if not speed else _speed(speed, unit), style="cyan", justify="right")


class _PlainProgress:
    """The same in lines of text: one for each tenth of the way.

    Args:
        label: First word of each line.
        total: How many steps there are, if known; else a line comes every hundred steps.
        start: Step to begin from.
        unit: What is counted; `None` for steps, or for batches where the label is another.
    """

    def __init__(self, label: str, total: int | None, start: int, unit: str | None = None) -> None:
        self.label = label
        self._unit = unit or ("steps" if label == "step" else "batches")
        self._total = total
        self._start = self._done = start
        self._began = time.monotonic()
        self._interval = 100 if total is None else max(total / _PLAIN_LINES, 1)
        self._tenths = int(start / self._interval)

    def is_due(self, done: int) -> bool:
        """Whether `done` steps begin a new tenth."""
        tenths = int(done / self._interval + 1e-9)
        due, self._tenths = tenths > self._tenths, max(tenths, self._tenths)
        return due

    def advance(self) -> None:
        """Counts one batch, and prints where a line is due."""
        self._done += 1
        if self.is_due(self._done):
            self.print_line(self._done, {})

    def print_line(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Prints one line, for `done` steps."""
        seconds = time.monotonic() - self._began
        speed = (done - self._start) / max(seconds, 1e-9)
        parts = [f"{self.label} {done}"]
        if self._total is not None:
            width = len(str(self._total))
            parts = [f"{self.label} {done:>{width}}/{self._total}", f"{done / self._total:4.0%}"]
        parts.append(_clock(seconds))
        if self._total is not None and done < self._total:
            parts.append(f"{_clock((self._total - done) / speed)} left")
        parts.append(_speed(speed, self._unit))
        parts += [f"{name} {value}" for name, value in _short_metrics(metrics).items()]
        rich.get_console().print("  ".join(parts), highlight=False, soft_wrap=True)


def _total_steps(trainer: pl.Trainer) -> int | None:
    total = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
    return int(total) if math.isfinite(total) and total > 0 else None


def _finite_sum(batches: int | float | list[int | float]) -> int | None:
    total = sum(batches) if isinstance(batches, list) else batches
    return int(total) if math.isfinite(total) else None


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))


def _speed(per_second: float, unit: str) -> str:
    return f"{per_second:.1f} {unit}/s" if per_second >= 1 else f"{1 / per_second:.1f} s/{_SINGULAR[unit]}"


def _short_metrics(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Last part of each metric's name, and its value in few digits."""
    return {name.rsplit("/", 1)[-1].replace("_", " "): _number(float(value)) for name, value in metrics.items()}


def _number(value: float) -> str:
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.1e}" if small or abs(value) >= 1e4 else f"{value:.3f}"
