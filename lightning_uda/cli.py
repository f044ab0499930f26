"""The trainer's command line: `lightning-uda fit|validate|test|predict`."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins import CheckpointIO, LayerSync
from torch.distributed import is_torchelastic_launched

import lightning_uda.callbacks
import lightning_uda.datasets
import lightning_uda.methods
import lightning_uda.networks
import lightning_uda.optim
import lightning_uda.terms  # noqa: F401  importing the rooms makes their classes known by their short names
from lightning_uda.callbacks import (
    FiniteCheck,
    IoUTable,
    MemoryCheck,
    PredictionWriter,
    RunRecord,
    StepProgressBar,
    StopSignals,
    StopWithCheckpoint,
)
from lightning_uda.checkpoints import (
    CHECKPOINTS,
    CheckpointError,
    Found,
    damage_of,
    newest_checkpoint,
    previous_of,
    require_checkpoint,
)
from lightning_uda.config_files import with_paths
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.files import free_name, require_run_name
from lightning_uda.includes import allow_includes
from lightning_uda.label_spaces import num_classes
from lightning_uda.methods import UDAModule
from lightning_uda.parser import OptionParser
from lightning_uda.ranges import SEED, require
from lightning_uda.resuming import (
    CheckpointFiles,
    RunLogger,
    is_address,
    newest_of_run,
    require_file,
    require_start,
    restoring,
)
from lightning_uda.shared_batch_norm import SharedBatchNorm, require_shared_batch_norm
from lightning_uda.signals import TIME_IS_UP
from lightning_uda.trainer_checks import (
    require_callbacks,
    require_monitored,
    require_optimizer_runs,
    require_trainer_options,
    warn_of_slow_bfloat16,
)

_log = logging.getLogger(__name__)
_load_yaml = get_loader("yaml")
_QUOTED_OR_NONE = re.compile(r"""('[^']*'|"[^"]*")|(?<=[\[,:\s])None(?=[\]},])""")


def load_value(text: str) -> Any:
    """Reads a value of the command line, or a config file, as YAML in which `None` is null as `null` is.

    The parser hands a nested option (`--model.rounds.mining null`) from class to class as Python's text of its value,
    which the next class would read as the word "None". A quoted "None", and one inside a file, stays a word.

    Args:
        text: One value, or the content of a file.
    """
    if text.strip() == "None":
        return None
    if text.lstrip().startswith(("[", "{")) and "\n" not in text:
        text = _QUOTED_OR_NONE.sub(lambda match: match[1] or "null", text)
    return _load_yaml(text)


_OF_FILES = "predict --images PATH [PATH ...] --ckpt_path RUN --output DIR [options]"
"""The command that predicts files by the folder of a run; see `commands.predict_files`."""

set_loader("yaml", load_value, exceptions=(yaml.YAMLError,))
allow_includes()


class SaveConfig(SaveConfigCallback):
    """Saves the resolved config as `config.yaml` in the run folder, and hands it to the loggers.

    A run that goes on in its folder keeps its config; if it goes on with another one, the old is kept as
    `config.1.yaml`. It is saved when everything is set up, so that a run that is refused leaves no folder.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: other parts may still refuse."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the config."""
        self._save(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the config, unless training has."""
        self._save(trainer, pl_module, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the config."""
        self._save(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the config."""
        self._save(trainer, pl_module, "predict")

    def _save(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        logger = trainer.logger
        before, kept = Path(trainer.log_dir or "") / self.config_filename, None
        if isinstance(logger, RunLogger) and logger.resumed is not None:
            self.config["ckpt_path"] = None  # so that the file starts the run anew, as it did
            if trainer.is_global_zero and before.is_file():
                kept = before.rename(free_name(before))
        super().setup(trainer, pl_module, stage)
        if kept is not None and kept.read_bytes() == before.read_bytes():
            kept.unlink()

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Logs the config as hyper-parameters with every logger but the CSV one, whose folder holds the file."""
        for logger in trainer.loggers:
            if not isinstance(logger, RunLogger):
                logger.log_hyperparams(self.config.as_dict())


class UDACLI(LightningCLI):
    """LightningCLI with what belongs together said once.

    `data.label_space` goes to the method and, as `num_classes`, to the network; `seed_everything` to both as `seed`.
    Every run has a folder `<output>/<name>/version_<n>` of its own with `config.yaml` and `metrics.csv`; loggers given
    by `--trainer.logger` come on top and are called as it, unless they are named: TensorBoard's files lie in the run
    folder then, W&B's in `<output>/<name>/wandb`.

    `--ckpt_path last`, or `--resume`, stands for the newest checkpoint of the run; `fit` then goes on in its folder.
    """

    arguments: Sequence[str] = ()
    """The command line, where the run was started by one."""

    runs: bool = True
    """Whether the command runs the trainer, so that datasets are checked."""

    resumed: Found | None = None
    """The checkpoint of the run itself that `--resume` stands for."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose messages are short."""
        self.parser_class = OptionParser
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's name and folder and the links."""
        parser.add_argument("--name", type=str, default="run", help="Name of the run; its folder below `output`.")
        parser.add_argument("--output", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--resume",
            action="store_true",
            help="Go on from the newest whole checkpoint of the run's latest version; short for --ckpt_path last.",
        )
        parser.link_arguments("data.init_args.label_space", "model.init_args.label_space")
        parser.link_arguments(
            ("data.init_args.label_space", "model.init_args.network"),
            "model.init_args.network.init_args.num_classes",
            compute_fn=_num_classes,
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, with shipped configs by their names, and refuses a `ckpt_path` that is no checkpoint.

        Raises:
            CheckpointError: If it is damaged. `fit` goes on from the one before, if that is whole.
            FileNotFoundError: If there is no config of a name, or no such checkpoint.
            ValueError: If the trainer's options are no mapping, the run has no name or place, or `weights_only` is to
                be switched off.
        """
        words = sys.argv[1:] if args is None else args
        super().parse_arguments(parser, with_paths(words) if isinstance(words, list) else words)
        command = self.config.get("subcommand")
        if not command:
            return
        self.arguments = words if isinstance(words, list) else sys.argv[1:]
        run = self.config[command]
        if not isinstance(run["trainer"], Namespace):
            raise ValueError(f"trainer: found {run['trainer']!r}; expected a mapping of the arguments of Trainer.")
        if run.get("weights_only") is False:
            raise ValueError(
                "weights_only: found false, but checkpoints are read without running code of theirs. Leave it out."
            )
        for name in ("name", "output"):
            if run[name] is None:
                raise ValueError(f"{name}: found null; expected a text. Leave it out for its default.")
        require_run_name(run["name"], "name")
        if not isinstance(run["seed_everything"], bool):
            require(SEED, run["seed_everything"], "seed_everything")
        if run["resume"] or run["ckpt_path"] == "last":
            self.resumed = newest_of_run(Path(run["output"]) / run["name"])
            run["resume"] = False
        path, found = run["ckpt_path"], self.resumed
        if found is None and path is not None:
            require_file(path)
            found = None if is_address(path) else self._usable(Path(path), command)
        if found is not None:
            run["ckpt_path"] = str(found.path)
            _say_where_it_starts(found, command, run["trainer"]["max_steps"])

    def instantiate_classes(self) -> None:
        """Makes the data module first and has its datasets checked, as a method may fetch weights from elsewhere."""
        run = self.config[self.subcommand] if self.subcommand else self.config
        self.run_logger = RunLogger(run["output"], run["name"], self.resumed if self.subcommand == "fit" else None)
        self.parser.add_instantiator(self._named_logger, Logger)
        self.datamodule = self._get(self._made(without=("model", "trainer")), "data")
        if self.subcommand is not None and self.runs and getattr(rank_zero_only, "rank", 0) == 0:
            method = self._get(self.config, "model")["class_path"]
            self.datamodule.check_datasets(self.subcommand, streams_of(method))
        self.config_init = self._made(without=("data",))
        self.model = self._get(self.config_init, "model")
        self.model.require_what_terms_need()
        self.trainer = self.instantiate_trainer()
        if self.subcommand == "fit":
            self.model.require_steps(self.trainer.max_steps)
            require_optimizer_runs(self.model, self.trainer)
        require_monitored(self.model, self.trainer.callbacks)  # type: ignore[attr-defined]
        if self.subcommand is not None and self.runs:
            require_start(self.model, run["ckpt_path"], self.subcommand)

    def _made(self, without: Sequence[str]) -> Namespace:
        """What the config makes, but for some of its parts."""
        config = self.config.clone()
        run = config[self.subcommand] if self.subcommand else config
        for name in without:
            run.pop(name, None)
        made: Namespace = self.parser.instantiate_classes(config)
        return made

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds to what the config asks for: CSV logger, checkpoint files, progress bar, IoU table, checks, signals."""
        run = self.config_init[self.subcommand] if self.subcommand else self.config_init
        config = run["trainer"]
        require_trainer_options(config, trains=self.subcommand == "fit")
        loggers = config.get("logger")
        extra: list[Logger] = loggers if isinstance(loggers, list) else [loggers] if isinstance(loggers, Logger) else []
        given = config.get("callbacks") or []
        callbacks: list[Callback] = given if isinstance(given, list) else [given]
        if config.get("enable_progress_bar") is not False and not _any(callbacks, ProgressBar):
            callbacks.append(StepProgressBar())
        require_callbacks(callbacks)
        for always in (IoUTable, FiniteCheck, MemoryCheck, RunRecord):
            if not _any(callbacks, always):
                callbacks.append(always())
        if self.subcommand == "predict" and not _any(callbacks, PredictionWriter):
            callbacks.append(PredictionWriter())
        if self.subcommand not in (None, "fit") and run["ckpt_path"] is None:
            _log.warning("no --ckpt_path: the network is run as it was made, untrained unless it was given weights")
        if config.get("enable_checkpointing") is False:
            callbacks.append(StopSignals(self._go_on()))
        else:
            callbacks += [
                *([] if _any(callbacks, Checkpoint) else [ModelCheckpoint()]),
                StopWithCheckpoint(self._go_on()),
            ]
        given = config.get("plugins") or []
        plugins = given if isinstance(given, list) else [given]
        if not _any(plugins, CheckpointIO):
            plugins = [*plugins, CheckpointFiles()]
        shares = config.get("sync_batchnorm") is True
        if shares and not _any(plugins, LayerSync):
            plugins = [*plugins, SharedBatchNorm()]
        try:
            trainer = super().instantiate_trainer(
                logger=[self.run_logger, *extra], callbacks=callbacks, plugins=plugins, **kwargs
            )
        except (TypeError, ImportError) as error:  # of devices, accelerators and precisions that aren't there
            raise ValueError(f"trainer: {error}") from error
        warn_of_slow_bfloat16(trainer)
        if shares:
            require_shared_batch_norm(trainer)
        return trainer

    def _named_logger(self, kind: type[Logger], *args: Any, **kwargs: Any) -> Logger:
        """A logger of the config, called as the run folder and writing there, unless it was told otherwise."""
        folder = Path(self.run_logger.log_dir)
        if issubclass(kind, TensorBoardLogger) and kwargs.get("version") is None and kwargs["name"] == "lightning_logs":
            kwargs |= {"name": self.run_logger.name, "version": folder.name}
        if issubclass(kind, WandbLogger):
            called = {
                "name": f"{self.run_logger.name}/{folder.name}",
                "project": os.environ.get("WANDB_PROJECT", "lightning_uda"),
            }
            kwargs |= {name: value for name, value in called.items() if kwargs.get(name) is None}
            if kwargs.get("dir") is None and kwargs.get("save_dir") == ".":
                kwargs["save_dir"] = self.run_logger.root_dir
        return kind(*args, **kwargs)

    def _go_on(self) -> str:
        """The command that goes on with the run; torchrun's own options aren't known here."""
        kept, words = [], iter(self.arguments)
        for word in words:
            if word == "--ckpt_path":
                next(words, None)
            elif word != "--resume" and not word.startswith("--ckpt_path="):
                kept.append(word)
        start = "torchrun ... -m lightning_uda" if is_torchelastic_launched() else "lightning-uda"
        return f"{start} {shlex.join([*kept, '--ckpt_path', 'last'])}"

    def _usable(self, path: Path, command: str) -> Found:
        """A checkpoint, or the one before where it is damaged and training goes on from it."""
        try:
            return require_checkpoint(path, to_resume=command == "fit")
        except CheckpointError as error:
            before = previous_of(path)
            if command != "fit" or not before.is_file() or damage_of(path) is None:
                raise
            found = require_checkpoint(before)
            _log.warning("%s It is used, of step %d.", error, found.step)
            return found

    def fit(self, **kwargs: Any) -> None:
        """Trains, and says where the run folder is: at the start, at the end, and what is in it after an error.

        Raises:
            SystemExit: If `trainer.max_time` ended the run before its last step; the status is 124.
        """
        speaks = self.trainer.is_global_zero and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if speaks:
            _log.info("run folder: %s", self.run_logger.log_dir)
        try:
            with self._all_or_nothing(), restoring(kwargs.get("ckpt_path")):
                self.trainer.fit(**kwargs)
        except Exception:
            if speaks and Path(self.run_logger.log_dir).is_dir():
                _say_what_is_left(Path(self.run_logger.log_dir))
            raise
        self._say_where_it_is()
        if self.trainer.global_step < self.trainer.max_steps and self._time_is_up():
            raise SystemExit(TIME_IS_UP)

    def _time_is_up(self) -> bool:
        """Whether `trainer.max_time` ended the run; says so."""
        timer = next((one for one in self.trainer.callbacks if isinstance(one, Timer)), None)  # type: ignore[attr-defined]
        if timer is None or (timer.time_remaining() or 0) > 0:
            return False
        _log.warning(
            "trainer.max_time is up after step %d of %d; it counts all parts of a run, so that this one goes on with a "
            "longer one only:\n  %s --trainer.max_time TIME",
            *(self.trainer.global_step, self.trainer.max_steps, self._go_on()),
        )
        return True

    def validate(self, **kwargs: Any) -> None:
        """Runs validation; `IoUTable` prints its result, so the trainer's own table is left out."""
        with self._all_or_nothing(), restoring(kwargs.get("ckpt_path")):
            self.trainer.validate(**{**kwargs, "verbose": False})
        self._say_where_it_is()

    def test(self, **kwargs: Any) -> None:
        """Runs the test; see `validate`."""
        with self._all_or_nothing(), restoring(kwargs.get("ckpt_path")):
            self.trainer.test(**{**kwargs, "verbose": False})
        self._say_where_it_is()

    def predict(self, **kwargs: Any) -> None:
        """Runs prediction; `PredictionWriter` keeps its result, and says where, so it isn't kept in memory too."""
        with self._all_or_nothing(), restoring(kwargs.get("ckpt_path")):
            self.trainer.predict(**{**kwargs, "return_predictions": False})

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Of a new run that an error ends before a step, a score or a prediction, no folder is left."""
        try:
            yield
        except Exception:
            if self.trainer.is_global_zero and self.trainer.global_step == 0:
                self.run_logger.remove_if_unused()
            raise

    def _say_where_it_is(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            _log.info("the results are in the run folder, %s", self.run_logger.log_dir)


def run_trainer(arguments: list[str], kind: type[UDACLI] = UDACLI) -> UDACLI:
    """`fit`, `validate`, `test` and `predict`.

    Args:
        arguments: Arguments without the program's name.
        kind: Which command line; another one may do something else under the same options.

    Raises:
        ValueError: Where the trainer refuses its options.
    """
    try:
        return _parsed_and_run(arguments, kind)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


def _parsed_and_run(arguments: list[str], kind: type[UDACLI]) -> UDACLI:
    all_commands = kind.subcommands()
    commands = {name: all_commands[name] for name in arguments[:1] if name in all_commands} or all_commands
    usages = {name: f"lightning-uda {name} --config FILE [options]" for name in commands}
    if "predict" in commands:
        usages["predict"] += f"\n       lightning-uda {_OF_FILES}"
    # The parsers of the other commands, which each take a while to make, aren't made.
    of_command = type(kind.__name__, (kind,), {"subcommands": staticmethod(lambda: commands)})
    made: UDACLI = of_command(
        UDAModule,
        UDADataModule,
        save_config_callback=SaveConfig,
        trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "enable_model_summary": False},
        seed_everything_default=0,
        parser_kwargs={"prog": "lightning-uda", **{name: {"usage": usage} for name, usage in usages.items()}},
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=arguments,
        auto_configure_optimizers=False,
    )
    return made


def streams_of(class_path: str) -> Sequence[str]:
    """The streams of a method's class; those of a function that makes a method are taken to be source and target."""
    module, _, name = class_path.rpartition(".")
    streams: Sequence[str] = getattr(getattr(import_module(module), name), "streams", ("source", "target"))
    return streams


def _say_where_it_starts(found: Found, command: str, max_steps: int | None) -> None:
    if command == "fit" and max_steps is not None and 0 < max_steps <= found.step:
        _log.warning(
            "the run is finished: %s is of step %d, and trainer.max_steps is %d; nothing is left to train",
            *(found.path, found.step, max_steps),
        )
    elif command == "fit":
        _log.info("going on from step %d: %s", found.step, found.path)
    else:
        _log.info("the checkpoint is of step %d: %s", found.step, found.path)


def _say_what_is_left(folder: Path) -> None:
    newest = newest_checkpoint(folder / CHECKPOINTS)
    kept = "no checkpoint" if newest is None else f"{newest.path.name} of step {newest.step} in `{CHECKPOINTS}`"
    _log.info("the run ended with an error; its run folder, %s, holds %s", folder, kept)


def _num_classes(label_space: str, network: Any) -> int:
    """Number of classes of the label space, which the network may name too, but not otherwise."""
    expected = num_classes(label_space)
    given = None if network is None else network.init_args.get("num_classes")
    if given is not None and given not in (expected, _default_classes(network.class_path)):
        raise ValueError(
            f"found {given} classes, but data.label_space {label_space} has {expected}. Leave num_classes out, or give "
            "the label space of the classes that are meant."
        )
    return expected


def _default_classes(class_path: str) -> int | None:
    """What a network of one's own has for classes if nobody says, which the parser fills in."""
    module, _, name = class_path.rpartition(".")
    parameter = signature(getattr(import_module(module), name)).parameters.get("num_classes")
    return None if parameter is None or parameter.default is Parameter.empty else parameter.default


def _any(parts: Sequence[object], kind: type) -> bool:
    return any(isinstance(part, kind) for part in parts)
