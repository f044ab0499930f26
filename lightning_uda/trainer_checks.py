"""What is asked of the trainer and can't be, refused before a run begins; it would say so late, or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback

from lightning_uda.errors import did_you_mean
from lightning_uda.methods import UDAModule
from lightning_uda.metrics import iou_column, mean_column
from lightning_uda.metrics.columns import in_scope
from lightning_uda.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, NUMBER, POSITIVE, require

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


def require_trainer_options(config: Mapping[str, Any]) -> None:
    """Checks the numbers among the options of the trainer.

    Args:
        config: The options by name.

    Raises:
        ValueError: If one can't be trained with.
    """
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


def require_monitored(module: UDAModule, callbacks: Sequence[Callback]) -> None:
    """Checks that the scores that callbacks watch are there, where nothing but the package's own parts gives any.

    Raises:
        ValueError: If one isn't.
    """
    if not all(type(part).__module__.startswith(_OURS) for part in (module, *module.terms.values(), *callbacks)):
        return
    space, scopes = module.label_space, module.confusions()
    columns = [mean_column(), *map(mean_column, space.subsets), *map(iou_column, space.classes)]
    there = [f"val/{in_scope(column, scope)}" for scope in scopes for column in columns]
    for callback in callbacks:
        watched = cast(str | None, getattr(callback, "monitor", None))
        if watched is None or watched in (*there, "epoch", "step") or watched.startswith(("train/", "rounds/")):
            continue
        hint = did_you_mean(watched, there) or f"Scores are {there[0]}, {there[-1]} and the like."
        raise ValueError(f"{type(callback).__name__}.monitor: found {watched!r}, which nothing logs. {hint}")
