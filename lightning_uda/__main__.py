"""`lightning-uda`, and `python -m lightning_uda`: the trainer's commands and further ones."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pickle import UnpicklingError
from typing import NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_uda.callbacks import exit_on_signals
from lightning_uda.cli import readable, run_trainer
from lightning_uda.data.dataset import DatasetError
from lightning_uda.networks import WeightsError


class Command(NamedTuple):
    """A command beside the trainer's own.

    Attributes:
        place: Module in `lightning_uda.commands` and its function, which takes the arguments after the command's words
            and may give an exit status; imported when it is called, as training needs none of it.
        usage: Its arguments.
        what: What it does.
    """

    place: str
    usage: str
    what: str

    def function(self) -> Callable[[list[str]], int | None]:
        """The function, imported now."""
        module, name = self.place.split(":")
        function: Callable[[list[str]], int | None] = getattr(import_module(f"lightning_uda.commands.{module}"), name)
        return function


COMMANDS = {
    "data check": Command(
        "data_check:check_data",
        "--config FILE",
        "look through the datasets of a config: counts, sizes, classes, every problem",
    ),
    "report": Command("report:report_runs", "RUN [RUN ...]", "one table and one HTML page of several runs"),
    "folds": Command("folds:pool_folds", "RUN [RUN ...]", "the folds of cross-validation (NTHU) pooled, one run each"),
    "analyze": Command(
        "analyze:analyze_features",
        "--config FILE --output DIR",
        "how classes of source and target lie in feature space: distances, similarity, t-SNE",
    ),
    "sweep": Command("sweep:sweep_runs", "FILE", "the runs of a W&B sweep file, one after another, without W&B"),
    "grid": Command("grid:run_grid", "FILE", "the runs of a table, rows x seeds, and the table"),
}
"""Commands beside `fit`, `validate`, `test` and `predict`, by the words that call them."""

_QUIET = (
    "The '.*_dataloader' does not have many workers",
    "LightningCLI's args parameter is intended",
    "Total length of `list` across ranks is zero",  # no validation set
    "Found .* module\\(s\\) in eval mode at the start of training",  # a BatchNorm policy
    "You're resuming from a checkpoint that ended before the epoch ended",  # the streams start at the trainer's step
    ".*isinstance.treespec, LeafSpec.*",
    "Experiment logs directory .* exists and is not empty",
    "Checkpoint directory .* exists and is not empty",  # of a run that goes on
    "The dirpath has changed from",  # every run has a folder of its own
)


_READABLE = (
    DatasetError,
    WeightsError,
    OSError,
    ValueError,
    FloatingPointError,
    MisconfigurationException,
    UnpicklingError,
)
"""Errors whose message tells the user what to mend; others are the program's own faults and show where they arose."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line; ends with a one-message error and exit status 1 where the user can mend the cause.

    Args:
        args: Arguments without the program's name; `None` takes them from the command line.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    _set_up_messages()
    try:
        with exit_on_signals():
            _run(arguments)
    except _READABLE as error:
        if os.environ.get("LIGHTNING_UDA_TRACEBACK"):
            raise
        sys.exit(readable(error))


def _run(arguments: list[str]) -> None:
    words = next((words for words in COMMANDS if arguments[: len(words.split())] == words.split()), None)
    if words is None:
        run_trainer(arguments, _epilog())
    elif (status := COMMANDS[words].function()(arguments[len(words.split()) :])) is not None:
        sys.exit(status)


def _epilog() -> str:
    lines = [f"  {f'{words} {command.usage}':<30}{command.what}" for words, command in COMMANDS.items()]
    return "\n".join(["More commands:", *lines])


def _set_up_messages() -> None:
    """Shows what this package reports, and hides advertisements and warnings about what is done on purpose."""
    for message in _QUIET:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_a_line)
    log = logging.getLogger("lightning_uda")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler())


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in ("Tip:", "TPU available", "`Trainer.fit` stopped"))


if __name__ == "__main__":
    main()
