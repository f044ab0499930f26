"""What is asked of the trainer and can't be, refused before a run begins; it would say so late, or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args, get_type_hints

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BatchSizeFinder, LearningRateFinder, ModelCheckpoint, Timer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_uda.errors import did_you_mean
from lightning_uda.methods import UDAModule
from lightning_uda.metrics import iou_column, mean_column
from lightning_uda.metrics.columns import in_scope
from lightning_uda.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, NUMBER, POSITIVE, require

_log = logging.getLogger(__name__)

_RANGES = {
    "accumulate_grad_batches": COUNT,
    "check_val_every_n_epoch": COUNT,
    "gradient_clip_val": NOT_NEGATIVE,
    "limit_predict_batches": COUNT_OR_NONE,
    "limit_test_batches": COUNT_OR_NONE,
    "limit_train_batches": COUNT_OR_NONE,
    "limit_val_batches": COUNT_OR_NONE,
    "log_every_n_steps": COUNT_OR_NONE,
    "num_nodes": COUNT,
    "num_sanity_val_steps": NUMBER,
    "overfit_batches": COUNT_OR_NONE,
    "val_check_interval": POSITIVE,
}
"""Ranges of the trainer's numbers, which it doesn't refuse itself, or only in the midst of its work."""

_WHOLE = ("limit_train_batches", "overfit_batches")
"""Numbers of batches of the endless streams, which have no share; 1.0 is all."""

_PROCESSES_PER_CORE = 4
"""Most processes of a run on the cores of a CPU."""

_OURS = ("lightning_uda.", "lightning.")

_INSTEAD = {
    LearningRateFinder: "compare rates by a sweep over model.optimizer.lr",
    BatchSizeFinder: "set data.batch_size; a run says before its first step whether a GPU's memory will do",
    BackboneFinetuning: "give model.network.classifier_lr_scale",
    Timer: "give trainer.max_time",
}
"""Callbacks of Lightning's that expect another module than a method, or can't be saved; and what to do instead."""


def require_trainer_options(config: Mapping[str, Any], trains: bool) -> None:
    """Checks the options of the trainer.

    Args:
        config: The options by name.
        trains: Whether the command trains.

    Raises:
        ValueError: If one can't be run with, or a run that is to train would end before its first step.
    """
    for name, hint in get_type_hints(Trainer.__init__).items():
        if name in config and config[name] is None and type(None) not in get_args(hint):
            raise ValueError(f"trainer.{name}: found null, which it can't be. Leave it out for its default.")
    for name, allowed in _RANGES.items():
        require(allowed, config.get(name), f"trainer.{name}")
    for name in _WHOLE:
        value = config.get(name)
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(
                f"trainer.{name}: found {value}, a share; expected a number of batches, as the streams are endless."
            )
    devices, cores = config.get("devices"), os.cpu_count() or 1
    on_cpu = config.get("accelerator") == "cpu" or not torch.cuda.is_available()
    if isinstance(devices, int) and on_cpu and devices > _PROCESSES_PER_CORE * cores:
        raise ValueError(
            f"trainer.devices: found {devices}, which starts as many processes on {cores} CPU cores; expected "
            f"{_PROCESSES_PER_CORE * cores} at most."
        )
    if any(word in str(config.get("strategy")) for word in ("_spawn", "_fork", "_notebook")):
        raise ValueError(
            f"trainer.strategy: found {config['strategy']!r}, whose processes are copies of the first one; expected "
            "one that starts each by the command, such as 'ddp'."
        )
    if trains:
        _require_a_step(config)


def _require_a_step(config: Mapping[str, Any]) -> None:
    for name in ("limit_train_batches", "max_epochs"):
        if config.get(name) == 0:
            raise ValueError(f"trainer.{name}: found 0, with which nothing is trained. Leave it out.")
    longest = config.get("max_time")
    if longest is not None and (Timer(longest).time_remaining() or 0) <= 0:
        raise ValueError(f"trainer.max_time: found {longest}; expected a time above zero, such as 00:12:00:00.")


def require_callbacks(callbacks: Sequence[Callback]) -> None:
    """Checks that no callback is among them that a method can't be trained with, or whose files can't be named.

    Raises:
        ValueError: If one is, or if the states of two have one name in a checkpoint.
    """
    for kind, instead in _INSTEAD.items():
        if any(isinstance(callback, kind) for callback in callbacks):
            raise ValueError(f"trainer.callbacks: found {kind.__name__}, which can't be used here; {instead}.")
    saved: set[str] = set()
    for callback in callbacks:
        if is_overridden("state_dict", callback, parent=Callback):
            if callback.state_key in saved:
                raise ValueError(
                    f"trainer.callbacks: found two {type(callback).__name__} whose states a checkpoint can't tell "
                    "apart; expected one, or settings that differ (of ModelCheckpoint: monitor, mode or when it saves)."
                )
            saved.add(callback.state_key)
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.filename is not None:
            try:
                callback.format_checkpoint_name({})
            except (ValueError, TypeError, LookupError) as error:
                raise ValueError(
                    f"{type(callback).__name__}.filename: found {callback.filename!r}, which can't be filled in "
                    f"({error}); expected scores in braces, as in 'step{{step}}_{{val/miou:.1f}}'."
                ) from error


def warn_of_slow_bfloat16(trainer: Trainer) -> None:
    """Says that bfloat16 won't pay on an x86 CPU without AVX-512, where oneDNN has no kernels for it."""
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.precision.startswith("bf16") and torch.backends.cpu.get_cpu_capability() == "AVX2":
        _log.warning(
            "trainer.precision: found %s on a CPU without instructions for it, where a step takes many times as long "
            "as in float32; use --trainer.precision 32-true here.",
            trainer.precision,
        )


def require_optimizer_runs(module: UDAModule, trainer: Trainer) -> None:
    """Checks that the optimiser can make its steps on the device.

    Raises:
        ValueError: If it is to be captured in a graph of a GPU on another device.
    """
    device, made = trainer.strategy.root_device.type, module.optimizer([torch.nn.Parameter(torch.zeros(1))])
    if device in ("cpu", "mps") and made.defaults.get("capturable"):
        raise ValueError(
            f"model.optimizer: {type(made).__name__}.capturable: found true on {device}; expected a GPU. Leave it out."
        )


def require_monitored(module: UDAModule, callbacks: Sequence[Callback]) -> None:
    """Checks that the scores that callbacks watch, or name files by, are there.

    Of a module or callback that isn't the package's own it isn't known what it logs, so that all is accepted then.

    Raises:
        ValueError: If one isn't.
    """
    if not all(type(part).__module__.startswith(_OURS) for part in (module, *module.terms.values(), *callbacks)):
        return
    space, scopes = module.label_space, module.confusions()
    columns = [mean_column(), *map(mean_column, space.subsets), *map(iou_column, space.classes)]
    there = [f"val/{in_scope(column, scope)}" for scope in scopes for column in columns]
    for callback in callbacks:
        named: dict[str, Tensor] = {}
        if isinstance(callback, ModelCheckpoint):
            callback.format_checkpoint_name(named)  # puts a zero in for each score that it doesn't find
        watched = cast(str | None, getattr(callback, "monitor", None))
        for argument, name in [("monitor", watched), *(("filename", name) for name in named)]:
            if name is None or name in (*there, "epoch", "step") or name.startswith(("train/", "rounds/", "lr-")):
                continue
            hint = did_you_mean(name, there) or f"Scores are {there[0]}, {there[-1]} and the like."
            raise ValueError(f"{type(callback).__name__}.{argument}: found {name!r}, which nothing logs. {hint}")
