"""What stops a run: a checkpoint is saved after the last whole step, and the run says by which command it goes on."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning.pytorch as pl
import rich
from lightning.pytorch.callbacks import Callback, Checkpoint

from lightning_uda.checkpoints import CHECKPOINTS, SUFFIX
from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.workers import WorkerError
from lightning_uda.errors import is_of_lost_process
from lightning_uda.signals import may_listen

STOPPED = f"stopped{SUFFIX}"
"""Name of the checkpoint that a run saves when a signal, or an error of its data, stops it."""

_PREEMPTION = (signal.SIGUSR1,) if hasattr(signal, "SIGUSR1") else ()

_ONCE = 0.5
"""Seconds in which a second SIGINT is taken for the first, as launchers of several processes pass it on."""


class StopSignals(Callback):
    """Stops a run at SIGINT (Ctrl-C), SIGTERM and SIGUSR1 after the step in progress, with status 128 + signal.

    A validation that belongs to the step is finished too. A second Ctrl-C ends the run at once, with what was saved
    before. Outside of training steps, in evaluation and while pseudo-labels are made, the first signal ends it. The
    run says how it goes on. A run that gets to its last step ends as if there had been no signal. Signals that are
    ignored, as `nohup` does, stay so, and SIGUSR1 is left to whom it belongs already, such as Lightning's requeueing
    in SLURM.

    In a distributed run the processes ask each other after every step, and stop together where one got a signal.

    A run that ends because a loader's process died, or a file can't be read, says the same, after a checkpoint too;
    but not where gradients of several batches are half accumulated, or in a distributed run, as the others are in a
    step. A validation in which that happened is made again when the run goes on. Where another process of the run is
    gone, the last checkpoint there is stays the last.

    This class saves nothing, for runs without checkpoints; `StopWithCheckpoint` does.

    Args:
        go_on: Command that goes on with the run.
    """

    def __init__(self, go_on: str) -> None:
        self.go_on = go_on
        self._signal: int | None = None
        self._at = 0.0
        self._in_step = False
        self._is_whole = False  # the step before is done, and no other begun
        self._done_at: int | None = None  # step after which a signal was heeded
        self._folder: Path | None = None
        self._speaks = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listens from now on."""
        folder = trainer.log_dir if trainer.loggers else None  # all ranks have to ask together
        self._folder = None if folder is None else Path(folder) / CHECKPOINTS
        self._signal, self._in_step, self._is_whole, self._done_at = None, False, False, None
        self._speaks = trainer.is_global_zero
        self._take_over()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens instead of the trainer, which would end the run with status 0 and without a checkpoint."""
        self._take_over(*_PREEMPTION)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens instead of the trainer, which would go on."""
        self._take_over()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See `on_validation_start`."""
        self._take_over()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See `on_validation_start`."""
        self._take_over()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run where the step before was its last, without a validation; else signals wait from now on."""
        if self._done_at is not None:
            self._end()
        self._in_step, self._is_whole = True, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves a checkpoint after the step in which a signal came; a validation may still follow."""
        self._is_whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._is_whole and self._is_to_stop(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves a checkpoint and ends the run, if a signal came in the step or in its validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._is_to_stop(trainer):
            self._save(trainer)
            self._end()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """At the end of a round: the same, as what comes next may take long."""
        self._in_step = self._is_whole = False
        if self._is_to_stop(trainer):
            if self._done_at != trainer.global_step:
                self._save(trainer)
            self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Says how the run goes on, below the progress bar, which has ended by now."""
        if self._signal is not None and isinstance(exception, SystemExit):
            self._say(f"Stopped by {self._name}, after step {trainer.global_step} of {trainer.max_steps}.")
            self._say_how_it_goes_on()
        elif trainer.state.fn == "fit" and trainer.global_step and isinstance(exception, (WorkerError, DatasetError)):
            if self._is_whole and trainer.world_size == 1:
                self._save_between_steps(trainer)
            self._say(f"Stopped by its data, after step {trainer.global_step} of {trainer.max_steps}.")
            self._say_how_it_goes_on()
        elif trainer.state.fn == "fit" and is_of_lost_process(exception):
            self._say(f"Stopped in the step after step {trainer.global_step} of {trainer.max_steps}.")
            self._say_how_it_goes_on()

    def save(self, trainer: pl.Trainer, path: Path) -> None:
        """Saves a checkpoint; here none."""

    def _is_to_stop(self, trainer: pl.Trainer) -> bool:
        """Whether a process got a signal, and steps are left."""
        if not trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False):
            return False
        return not 0 < trainer.max_steps <= trainer.global_step

    def _save_between_steps(self, trainer: pl.Trainer) -> None:
        """Saves a checkpoint, from which a validation that was begun starts anew."""
        loop = trainer.fit_loop.epoch_loop
        if not trainer.validating:
            loop._batches_that_stepped -= 1  # Lightning counts it when the run goes on, as it saves within a step
        else:
            validated = loop.val_loop.batch_progress
            validated.reset()
            validated.increment_ready()
            validated.increment_started()  # what Lightning takes for a validation to be made again
        try:
            self._save(trainer)
        except (OSError, FloatingPointError) as error:
            self._say(str(error))

    def _save(self, trainer: pl.Trainer) -> None:
        self._done_at = trainer.global_step
        if self._folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save(trainer, self._folder / STOPPED)

    def _end(self) -> NoReturn:
        self._signal = self._signal or signal.SIGTERM  # another process got it
        raise SystemExit(128 + self._signal)

    @property
    def _name(self) -> str:
        return signal.Signals(self._signal or signal.SIGTERM).name

    def _take_over(self, *further: int) -> None:
        free = [number for number in further if signal.getsignal(number) is signal.SIG_DFL]
        for number in (signal.SIGINT, signal.SIGTERM, *free):
            if may_listen(number):
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """What a signal does, between two instructions of the program."""
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._at = number, now
            if not self._in_step:
                self._end()
            self._say(f"{self._name}: the run stops after this step. Ctrl-C again ends it at once.")
        elif number == signal.SIGINT and now - self._at > _ONCE:
            self._say("Ended within a step.")
            self._say_how_it_goes_on()
            with suppress(OSError):
                rich.get_console().show_cursor(True)
            os._exit(128 + number)

    def _say_how_it_goes_on(self) -> None:
        if self._folder is None:
            return
        kept = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        if kept:
            self._say(f"Its last checkpoint is {kept[-1]}. It goes on by\n  {self.go_on}")
        else:
            self._say("It has saved no checkpoint; the same command starts anew.")

    def _say(self, text: str) -> None:
        if self._speaks:
            with suppress(OSError):  # the reader of a pipe may have gone at the same Ctrl-C
                rich.get_console().print(text, soft_wrap=True, highlight=False, markup=False)


class StopWithCheckpoint(StopSignals, Checkpoint):
    """As `StopSignals`; saves `checkpoints/stopped.ckpt` in the run folder before it ends the run.

    Lightning puts a `Checkpoint` behind all other callbacks, so that the teacher has moved and the tables are written
    before the state is saved.
    """

    def save(self, trainer: pl.Trainer, path: Path) -> None:
        """Saves a checkpoint."""
        trainer.save_checkpoint(path, weights_only=False)
