"""The command line: `lightning-uda fit|validate|test|predict|data check|report|folds|sweep`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import rich
import torch
from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from rich.text import Text

import lightning_uda.callbacks
import lightning_uda.datasets
import lightning_uda.methods
import lightning_uda.networks
import lightning_uda.optim
import lightning_uda.terms  # noqa: F401  importing the rooms makes their classes known by their short names
from lightning_uda.callbacks import IoUTable, PredictionWriter, StepProgressBar
from lightning_uda.data.check import print_report, scan
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.dataset import DatasetError, Problem
from lightning_uda.includes import allow_includes
from lightning_uda.label_spaces import num_classes
from lightning_uda.methods import UDAModule
from lightning_uda.networks import WeightsError

_EPILOG = """
More commands:
  data check --config FILE      look through the datasets of a config: counts, sizes, classes, every problem
  report RUN [RUN ...]          one table and one HTML page of several runs
  folds RUN [RUN ...]           the folds of cross-validation (NTHU) pooled, one run each
  sweep FILE                    the runs of a W&B sweep file, one after another, without W&B
"""

_SETS = ("source", "target", "val", "test", "predict")
_log = logging.getLogger(__name__)
_QUIET = (
    "The '.*_dataloader' does not have many workers",
    "LightningCLI's args parameter is intended",
    "Total length of `list` across ranks is zero",  # no validation set
    "Found .* module\\(s\\) in eval mode at the start of training",  # a BatchNorm policy
    "You're resuming from a checkpoint that ended before the epoch ended",  # the streams start at the trainer's step
    ".*isinstance.treespec, LeafSpec.*",
    "Experiment logs directory .* exists and is not empty",
    "The dirpath has changed from",  # every run has a folder of its own
)


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the list of further commands."""


class SaveConfig(SaveConfigCallback):
    """Saves the resolved config as `config.yaml` in the run folder, and hands it to the loggers."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Logs the config as hyper-parameters with every logger but the CSV one, whose folder holds the file."""
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams(self.config.as_dict())


class UDACLI(LightningCLI):
    """LightningCLI with what belongs together said once.

    `data.label_space` goes to the method and, as `num_classes`, to the network; `seed_everything` to both as `seed`.
    Every run has a folder `<output>/<name>/version_<n>` of its own with `config.yaml` and `metrics.csv`; loggers given
    by `--trainer.logger` come on top.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's name and folder and the links."""
        parser.add_argument("--name", type=str, default="run", help="Name of the run; its folder below `output`.")
        parser.add_argument("--output", type=str, default="runs", help="Folder of all runs.")
        parser.link_arguments("data.init_args.label_space", "model.init_args.label_space")
        parser.link_arguments(
            "data.init_args.label_space", "model.init_args.network.init_args.num_classes", compute_fn=num_classes
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and refuses a `ckpt_path` that is no checkpoint."""
        super().parse_arguments(parser, args)
        command = self.config.get("subcommand")
        path = self.config[command].get("ckpt_path") if command else None
        if path and Path(path).is_file():
            _require_checkpoint(path)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the CSV logger, the progress bar and the IoU table to what the config asks for."""
        run = self.config_init[self.subcommand] if self.subcommand else self.config_init
        config = run["trainer"]
        loggers = config.get("logger")
        extra: list[Logger] = loggers if isinstance(loggers, list) else [loggers] if isinstance(loggers, Logger) else []
        csv = CSVLogger(run["output"], run["name"], flush_logs_every_n_steps=10)
        given = config.get("callbacks") or []
        callbacks: list[Callback] = given if isinstance(given, list) else [given]
        if config.get("enable_progress_bar") is not False and not _any(callbacks, ProgressBar):
            callbacks.append(StepProgressBar())
        if not _any(callbacks, IoUTable):
            callbacks.append(IoUTable())
        if self.subcommand == "predict" and not _any(callbacks, PredictionWriter):
            callbacks.append(PredictionWriter(Path(csv.log_dir) / "predictions"))
        if self.subcommand not in (None, "fit") and run["ckpt_path"] is None:
            _log.warning("no --ckpt_path: the network is run as it was made, untrained unless it was given weights")
        if self.subcommand == "fit" and run["ckpt_path"] is None and self._starts_from_random_weights():
            _log.info("the network starts from random weights; --model.network.weights FILE gives it others")
        return super().instantiate_trainer(logger=[csv, *extra], callbacks=callbacks, **kwargs)

    def _starts_from_random_weights(self) -> bool:
        model = self.config[self.subcommand]["model"]["init_args"]
        network = model["network"].get("init_args") or {}
        return "weights" in network and self.model.student.random_weights and not model.get("source_checkpoint")

    def validate(self, **kwargs: Any) -> None:
        """Runs validation; `IoUTable` prints its result, so the trainer's own table is left out."""
        self.trainer.validate(**{**kwargs, "verbose": False})

    def test(self, **kwargs: Any) -> None:
        """Runs the test; see `validate`."""
        self.trainer.test(**{**kwargs, "verbose": False})

    def predict(self, **kwargs: Any) -> None:
        """Runs prediction; `PredictionWriter` keeps its result, so it isn't kept in memory too."""
        self.trainer.predict(**{**kwargs, "return_predictions": False})


class DataCheckCLI(UDACLI):
    """Parses a whole experiment config, but makes its data module only."""

    def instantiate_classes(self) -> None:
        """Makes `self.datamodule` without the datasets that can't be made; why not stands in `self.unusable`."""
        self.unusable: dict[str, str] = {}
        for name in _SETS:
            try:
                self._make_data(leave_out=[other for other in _SETS if other != name])
            except (DatasetError, ValueError) as error:
                self.unusable[name] = str(_cause(error))
        self.datamodule = self._make_data(leave_out=self.unusable)

    def _make_data(self, leave_out: Iterable[str]) -> UDADataModule:
        data = self.config["data"].clone()
        for name in leave_out:
            data.init_args[name] = None
        made: UDADataModule = self.parser.instantiate_classes(Namespace(data=data))["data"]  # type: ignore[no-untyped-call]
        return made


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line; ends with a one-message error and exit status 1 where the user can mend the cause.

    Args:
        args: Arguments without the program's name; `None` takes them from the command line.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    _set_up_messages()
    try:
        if arguments[:2] == ["data", "check"]:
            sys.exit(check_data(arguments[2:]))
        elif arguments[:1] == ["report"]:
            report_runs(arguments[1:])
        elif arguments[:1] == ["folds"]:
            pool_folds(arguments[1:])
        elif arguments[:1] == ["sweep"]:
            from lightning_uda.commands.sweep import sweep_runs  # brings matplotlib, which training doesn't need

            sweep_runs(arguments[1:])
        else:
            run_trainer(arguments)
    except (DatasetError, WeightsError, OSError, ValueError, MisconfigurationException, UnpicklingError) as error:
        if os.environ.get("LIGHTNING_UDA_TRACEBACK"):
            raise
        sys.exit(_readable(error))


def run_trainer(arguments: list[str]) -> UDACLI:
    """`fit`, `validate`, `test` and `predict`."""
    allow_includes()
    return UDACLI(
        UDAModule,
        UDADataModule,
        save_config_callback=SaveConfig,
        trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0},
        seed_everything_default=0,
        parser_kwargs={
            "prog": "lightning-uda",
            "epilog": _EPILOG,
            "formatter_class": HelpFormatter,
            **{name: {"usage": f"lightning-uda {name} --config FILE [options]"} for name in UDACLI.subcommands()},
        },
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=arguments,
        auto_configure_optimizers=False,
    )


def check_data(arguments: list[str]) -> int:
    """`data check`: scans every dataset of a config and prints what it finds.

    Args:
        arguments: Options as for `fit`.

    Returns:
        Exit status: 0 if no dataset has a problem, else 1.
    """
    allow_includes()
    cli = DataCheckCLI(
        UDAModule,
        UDADataModule,
        seed_everything_default=0,
        parser_kwargs={
            "prog": "lightning-uda",
            "usage": "lightning-uda data check --config FILE [options]",
            "description": "Looks through the datasets of a config: counts, sizes, classes, every problem.",
        },
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=arguments,
        run=False,
        auto_configure_optimizers=False,
    )
    cli.datamodule.setup("fit")
    console, label_space, problems = rich.get_console(), cli.datamodule.label_space, len(cli.unusable)
    for name, why in cli.unusable.items():
        console.print(f"\n[bold]data.{name}[/bold]  [red]can't be read[/red]\n", Text(why), sep="")
    for name, dataset in cli.datamodule.datasets.items():
        found = scan(dataset, label_space)
        if name in ("source", "target") and len(dataset) < cli.datamodule.batch_size:
            what = f"{len(dataset)} images, fewer than one batch of {cli.datamodule.batch_size}"
            found.problems.append(Problem(f"data.{name}", f"found {what}; add images or lower `batch_size`."))
        print_report(name, found, label_space, console)
        problems += len(found.problems)
    return 1 if problems else 0


def report_runs(arguments: list[str]) -> None:
    """`report`: prints the table of several runs and writes their page."""
    parser = argparse.ArgumentParser(prog="lightning-uda report", description=report_runs.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders; of one with versions the latest is taken.")
    parser.add_argument("--output", type=Path, default=Path("runs/report.html"), help="The page to write.")
    chosen = parser.parse_args(arguments)
    from lightning_uda.report import report  # brings matplotlib, which training doesn't need

    report(chosen.runs, chosen.output)


def pool_folds(arguments: list[str]) -> None:
    """`folds`: prints the scores of folds, one run each, and of their pooled matrices, and writes them as CSV."""
    parser = argparse.ArgumentParser(prog="lightning-uda folds", description=pool_folds.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders with confusion_val.csv or confusion_test.csv.")
    parser.add_argument("--output", type=Path, default=Path("runs/folds.csv"), help="The table to write.")
    chosen = parser.parse_args(arguments)
    from lightning_uda.report.folds import report_folds  # as above

    report_folds(chosen.runs, chosen.output)


def _require_checkpoint(path: str) -> None:
    wanted = {"state_dict", "global_step", "pytorch-lightning_version"}
    try:
        found = set(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: can't be read as a checkpoint ({type(error).__name__}). Give one of a run."
        ) from error
    if not wanted <= found:
        raise ValueError(
            f"{path}: no checkpoint of a run (it lacks {sorted(wanted - found)}). Give one from a run's `checkpoints` "
            "folder; published weights go to --model.network.weights."
        )


def _any(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _readable(error: BaseException) -> str:
    # Of a worker's error, the part after its traceback.
    text = str(_cause(error)).rpartition("DatasetError: ")[2].strip()
    return f"error: {text}\n(LIGHTNING_UDA_TRACEBACK=1 shows where it came from.)"


def _cause(error: BaseException) -> BaseException:
    """Of the parser's account of a constructor's error that error, which itself says what is wrong."""
    while str(error).startswith("Does not validate against any") and error.__cause__ is not None:
        error = error.__cause__
    return error


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
