"""`lightning-uda`, and `python -m lightning_uda`: the trainer's commands and further ones."""

from __future__ import annotations

import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from lightning_uda import __version__
from lightning_uda.errors import READABLE, explained, readable
from lightning_uda.signals import exit_on_signals

TRAINER = {
    "fit": "Train a network on a source and a target, validate it on the way and save checkpoints.",
    "validate": "Score a checkpoint on the validation set.",
    "test": "Score a checkpoint on the test set.",
    "predict": "Write the labels that a checkpoint predicts for images.",
}
"""The trainer's commands, which all take `--config FILE [options]`, and what they do."""


class Command(NamedTuple):
    """A command beside the trainer's own.

    Attributes:
        place: Module in `lightning_uda.commands` and its function, which takes the arguments after the command's words
            and may give an exit status; imported when it is called, as training needs none of it.
        usage: Its arguments.
        what: What it does, in a sentence.
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
    "predict --images": Command(
        "predict_files:predict_files",
        "PATH [PATH ...] --ckpt_path RUN --output DIR",
        "Write what a run predicts for images, videos and folders, by its own config.",
    ),
    "configs": Command(
        "configs:show_configs",
        "[TEXT] | copy NAME [FILE]",
        "List the configs that the package ships, or copy one to change it.",
    ),
    "data check": Command(
        "data_check:check_data",
        "--config FILE",
        "Look through the datasets of a config: counts, sizes, classes, every problem.",
    ),
    "report": Command("report:report_runs", "RUN [RUN ...]", "Make one table and one HTML page of several runs."),
    "folds": Command("folds:pool_folds", "RUN [RUN ...]", "Pool the folds of a cross-validation (NTHU), one run each."),
    "analyze": Command(
        "analyze:analyze_features",
        "--config FILE --output DIR",
        "Measure how classes of source and target lie in feature space: distances, similarity, t-SNE.",
    ),
    "export": Command(
        "export:export_network",
        "--config FILE --output FILE --format FORMAT",
        "Write a trained network as one file, ONNX or a program of torch.export, and check it.",
    ),
    "sweep": Command("sweep:sweep_runs", "FILE", "Train the runs of a W&B sweep file one after another, without W&B."),
    "grid": Command("grid:run_grid", "FILE", "Train the runs of a table, rows x seeds, and tabulate them."),
}
"""Commands beside `fit`, `validate`, `test` and `predict`, by the words that call them.

Of "predict --images" the option may stand anywhere.
"""

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


_HELP = """\
usage: lightning-uda COMMAND [options]

Unsupervised domain adaptive semantic segmentation.

{commands}

`lightning-uda COMMAND --help` lists the options of a command, and `lightning-uda fit --model.help DACS` those of a
class that a config names, here of a method.

options:
{options}
"""

_OPTIONS = {
    "-h, --help": "Show this list and end.",
    "--version": "Show the version of lightning-uda and end.",
    "-c FILE, --config FILE": "Before the command: take its options from a file that has them under its name.",
    "--print_config": "Before or after the command: show its options in full, as a config file, and end.",
}


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
    except READABLE as error:
        if os.environ.get("LIGHTNING_UDA_TRACEBACK"):
            raise
        sys.exit(readable(error))
    except (RuntimeError, MemoryError) as error:
        if os.environ.get("LIGHTNING_UDA_TRACEBACK") or (message := explained(error)) is None:
            raise
        sys.exit(message)


def _run(arguments: list[str]) -> None:
    first = arguments[0] if arguments else ""
    words = next((words for words in COMMANDS if arguments[: len(words.split())] == words.split()), None)
    if first == "predict" and any(word.partition("=")[0] == "--images" for word in arguments):
        words, arguments = "predict --images", ["predict", "--images", *arguments[1:]]
    if words is not None:
        with _uncollected():
            function = COMMANDS[words].function()
        if (status := function(arguments[len(words.split()) :])) is not None:
            sys.exit(status)
    elif first in ("-h", "--help"):
        print(_help(), end="")
    elif first == "--version":
        print(f"lightning-uda {__version__}")
    elif first in TRAINER or first.startswith("-"):
        with _uncollected():
            from lightning_uda.cli import run_trainer  # brings torch and Lightning, which the others do without
        run_trainer(arguments)
    else:
        print(f"error: {_no_command(arguments)}\n\n{_list_of_commands()}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: modules leave none, and looking for it takes an eighth of the time to import them."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _help() -> str:
    options = "\n".join(f"  {name:<24}{what}" for name, what in _OPTIONS.items())
    return _HELP.format(commands=_list_of_commands(), options=options)


def _list_of_commands() -> str:
    lines = [(f"{name} --config FILE", what) for name, what in TRAINER.items()]
    further = [(f"{words} {command.usage}", command.what) for words, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in [*lines, *further]) + 2
    listed = ["\n".join(f"  {usage:<{width}}{what}" for usage, what in several) for several in (lines, further)]
    return f"commands of the trainer:\n{listed[0]}\n\nfurther commands:\n{listed[1]}"


def _no_command(arguments: list[str]) -> str:
    """What is wrong with arguments that begin with no command."""
    if not arguments:
        return "found no command; expected one of these."
    names = [*TRAINER, *COMMANDS]
    tried = [" ".join(arguments[:2]), arguments[0]]  # commands are of one or two words
    close = [name for words in tried for name in get_close_matches(words, names, n=1)]
    close += [name for name in names if name.split()[0] == arguments[0]]
    hint = f"did you mean {close[0]!r}?" if close else "expected one of these."
    return f"found {arguments[0]!r}, which is no command; {hint}"


class _Printer(logging.Handler):
    """Prints messages to whatever is standard error at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one; where that fails, training goes on."""
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):
            self.handleError(record)


def _set_up_messages() -> None:
    """Shows what this package reports, and hides advertisements and warnings about what is done on purpose."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console of Windows may lack a character; that must end no run
    for message in _QUIET:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_a_line)
    log = logging.getLogger("lightning_uda")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(_Printer())


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in ("Tip:", "TPU available", "`Trainer.fit` stopped"))


if __name__ == "__main__":
    main()
