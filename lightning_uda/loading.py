"""The parts of a run, made by its config without running them, with the weights of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_uda.callbacks import AdaptBatchNorm, StepProgressBar
from lightning_uda.checkpoints import CHECKPOINTS, SUFFIX, CheckpointError, newest_checkpoint
from lightning_uda.cli import UDACLI, run_trainer
from lightning_uda.config_files import find_config
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.methods import AdaBN, UDAModule
from lightning_uda.resuming import CheckpointFiles, require_file, trained_versions

_CONFIG = "config.yaml"
_NO_WEIGHTS = "Give one as `checkpoint`, or say weights=False for the network as it began."
_DATASETS = ("source", "target", "labelled_target", "val", "test", "predict")


class PartsCLI(UDACLI):
    """Takes the options of `validate` and makes model, data and trainer, but runs nothing."""

    runs = False

    def validate(self, **kwargs: Any) -> None:
        """Nothing: the trainer would make a run folder."""


class LoadCLI(PartsCLI):
    """Makes model and data on any machine: the trainer, of which nothing is used, is a bare one."""

    def before_instantiate_classes(self) -> None:
        """Leaves out what belongs to the trainer, such as its loggers."""
        trainer = self.config["validate"]["trainer"]
        for name in list(vars(trainer)):
            trainer[name] = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that nothing is done with."""
        return Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


class MethodCLI(LoadCLI):
    """As `LoadCLI`, but no dataset is opened."""

    def before_instantiate_classes(self) -> None:
        """Leaves out the datasets too."""
        super().before_instantiate_classes()
        data = self.config["validate"]["data"]["init_args"]
        for name in _DATASETS:
            data[name] = None


class TrainedCLI(MethodCLI):
    """As `MethodCLI`, for weights of a checkpoint: the network fetches none and reads none from files."""

    def before_instantiate_classes(self) -> None:
        """Leaves out the weights that training began with too."""
        super().before_instantiate_classes()
        _leave_out_weights(self.config["validate"]["model"]["init_args"]["network"])


class FilesCLI(LoadCLI):
    """Makes what predicts files on one device: of the datasets `predict` alone, of the trainer its precision.

    The network gets no weights but those of a checkpoint.
    AdaBN goes with it, and the target images that it needs.
    """

    def before_instantiate_classes(self) -> None:
        """Leaves out all else."""
        run = self.config["validate"]
        trainer, kept = run["trainer"], {name: run["trainer"][name] for name in ("accelerator", "precision")}
        given = trainer["callbacks"] or []
        callbacks = given if isinstance(given, list) else [given]
        kept["callbacks"] = [one for one in callbacks if _last(one["class_path"]) == AdaptBatchNorm.__name__]
        super().before_instantiate_classes()
        _leave_out_weights(run["model"]["init_args"]["network"])
        for name, value in kept.items():
            trainer[name] = value
        adapts = bool(kept["callbacks"]) or _last(run["model"]["class_path"]) == AdaBN.__name__
        for name in _DATASETS:
            if name != "predict" and not (adapts and name == "target"):
                run["data"]["init_args"][name] = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that makes no run folder."""
        config = self.config_init["validate"]["trainer"]
        return Trainer(
            accelerator=config["accelerator"],
            devices=1,
            precision=config["precision"],
            callbacks=[StepProgressBar(), *config["callbacks"]],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )


class Run(NamedTuple):
    """A run that was loaded.

    Attributes:
        method: In eval mode, on the CPU.
        data: Its data module, without datasets if these were left out.
        config: Content of the run's `config.yaml`.
    """

    method: UDAModule
    data: UDADataModule
    config: dict[str, Any]


def load_run(folder: str | Path, checkpoint: str | Path | None, *, weights: bool, data: bool) -> Run:
    """Makes the parts of a run again; see `lightning_uda.load`."""
    version = _version(Path(folder))
    file = None
    if weights:
        file = _newest(version, _NO_WEIGHTS) if checkpoint is None else _named(version, Path(checkpoint))
    elif checkpoint is not None:
        raise ValueError(f"load: found checkpoint={str(checkpoint)!r} beside weights=False. Leave one of them out.")
    cli = _made(version / _CONFIG, LoadCLI if data else MethodCLI)
    method: UDAModule = cli.model
    if file is not None:
        load_weights(method, str(file))
    content = yaml.safe_load((version / _CONFIG).read_text(encoding="utf-8"))
    return Run(method.eval(), cli.datamodule, content)


def load_weights(method: UDAModule, path: str) -> int:
    """Takes over a checkpoint, and gives its step.

    Raises:
        CheckpointError: If it is damaged, or no checkpoint of a run.
        FileNotFoundError: If it isn't there.
        ValueError: If it isn't one of this method, network and label space.
        WeightsError: If weights are NaN or infinite.
    """
    require_file(path)
    content = CheckpointFiles().load_checkpoint(path)
    method.require_fits(content, path)
    method.on_load_checkpoint(content)
    method.load_state_dict(content["state_dict"])
    return int(content["global_step"])


def find_checkpoint(given: Path, config: Path | None = None) -> tuple[Path, Path]:
    """The checkpoint that a path stands for, and its config.

    Args:
        given: A checkpoint, or the folder of a run or of a version of it, which stand for their newest checkpoint.
        config: The config, where it isn't in the folder of the run, or the short name of a shipped one.

    Raises:
        CheckpointError: If the folder has no whole checkpoint.
        FileNotFoundError: If there is no such file or folder, or no config.
    """
    if not given.exists():
        raise FileNotFoundError(
            f"--ckpt_path: found no {given}; expected the folder of a run, such as runs/NAME, or a checkpoint in its "
            f"`{CHECKPOINTS}` folder."
        )
    version = _version(given) if given.is_dir() else given.parent.parent
    file = _newest(version, "Give a file as --ckpt_path.") if given.is_dir() else given
    if config is not None:
        return file, _named_config(str(config))
    found = version / _CONFIG
    if not found.is_file():
        raise FileNotFoundError(
            f"{given}: found no {found} for it; expected the config of its run. Give it as --config."
        )
    return file, found


def _named_config(name: str) -> Path:
    try:
        return find_config(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config: {error}") from error


def _leave_out_weights(part: Any) -> None:
    """Takes from the config of a network what fetches or reads weights, where a class of this package does."""
    init_args = part.get("init_args") if isinstance(part, Namespace) else None
    if init_args is None or not str(part["class_path"]).startswith("lightning_uda."):
        return
    for name, nothing in (("pretrained", False), ("weights", None)):
        if name in init_args:
            init_args[name] = nothing
    for value in vars(init_args).values():
        _leave_out_weights(value)


def _last(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _made(config: Path, kind: type[UDACLI]) -> UDACLI:
    try:
        with _quiet(), isolate_rng():  # the caller's random numbers aren't seeded anew
            return run_trainer(["validate", "--config", str(config)], kind)
    except SystemExit as error:
        raise ValueError(
            f"{config}: can't be read by this version of lightning-uda, as printed above. Correct a copy of it, and "
            "put it into the run folder."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No messages but warnings: what Lightning says of seed and devices isn't so."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _version(folder: Path) -> Path:
    """The folder itself if it is that of a version, else its latest version that trained."""
    candidates = [folder, *reversed(trained_versions(folder))]
    found = next((path for path in candidates if (path / _CONFIG).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{folder}: found no run, with a {_CONFIG} in it or its versions; expected the folder of a run that "
            "trained, such as runs/NAME or runs/NAME/version_0."
        )
    return found


def _newest(version: Path, advice: str) -> Path:
    found = newest_checkpoint(version / CHECKPOINTS, to_resume=False)
    if found is None:
        raise CheckpointError(f"{version}: found no whole checkpoint in its `{CHECKPOINTS}` folder. {advice}")
    return found.path


def _named(version: Path, checkpoint: Path) -> Path:
    """A checkpoint by its path, or by its name in the run's folder of checkpoints."""
    folder = version / CHECKPOINTS
    candidates = (checkpoint, folder / checkpoint, folder / f"{checkpoint}{SUFFIX}")
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        there = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
        raise FileNotFoundError(
            f"checkpoint: found no file {checkpoint}; expected a path, or one of {there} in {folder}."
        )
    return found
