"""Whether an optimiser can go on from the state that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_uda.checkpoints import CheckpointError

_OF_A_SCHEDULE = {"initial_lr"}
"""What a schedule adds to the groups of an optimiser."""

_OF_THE_CONFIG = ("weight_decay", "decoupled_weight_decay", "eps", "amsgrad", "nesterov", "maximize", "centered")
"""What no schedule changes in the groups of an optimiser; a state brings its own along, whatever the config says."""

_SHAPED_AS_WEIGHTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""Entries of the state of a weight that have its shape, in SGD's and Adam's families."""


def require_finite_states(checkpoint: Mapping[str, Any], source: str | Path) -> None:
    """Checks that no number of a checkpoint's optimisers, and no rate of its schedules, is NaN or infinite.

    Args:
        checkpoint: Content of a checkpoint that a run can go on from.
        source: Where it comes from; used in the message.

    Raises:
        CheckpointError: If one is; names the first.
    """
    rates = [{name: state.get(name) for name in ("base_lrs", "_last_lr")} for state in checkpoint["lr_schedulers"]]
    for name in _not_finite({"optimizer_states": checkpoint["optimizer_states"], "lr_schedulers": rates}):
        raise CheckpointError(
            f"{source}: {name} isn't finite, so that no run can go on from it. The training that wrote it diverged, or "
            "the file is damaged; give an earlier checkpoint."
        )


def require_state_fits(optimizer: torch.optim.Optimizer, checkpoint: Mapping[str, Any], source: str | Path) -> None:
    """Checks that an optimiser of a run can go on from a checkpoint, of whose state it is given a view.

    Args:
        optimizer: A new one over the weights of the run, which is of no use afterwards.
        checkpoint: Content of a checkpoint that a run can go on from.
        source: Where it comes from; used in the message.

    Raises:
        CheckpointError: If it holds the state of another optimiser, or of other groups of weights.
    """
    states = checkpoint["optimizer_states"]
    differing = f"found the states of {len(states)} optimisers, expected one"
    if len(states) == 1:
        differing = _difference(optimizer, states[0])
    if differing:
        raise CheckpointError(
            f"{source}: its optimiser isn't the {type(optimizer).__name__} of this run: {differing}. Config and "
            "checkpoint differ: give the optimiser and network that it was trained with (config.yaml in its run "
            "folder), or start anew from its weights: --model.init_from instead of --ckpt_path or --resume."
        )


def _difference(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> str:
    """What keeps an optimiser from going on from a state, in words; empty if nothing does."""
    expected = set(optimizer.param_groups[0])
    configured = [_options(group) for group in optimizer.param_groups]
    unknown = {name for group in state["param_groups"] for name in group} - expected - _OF_A_SCHEDULE
    if unknown:
        return f"its groups have {sorted(unknown)}, which this one's haven't"
    try:
        optimizer.load_state_dict(dict(state))  # fills in what older versions of torch didn't save
    except Exception as error:  # of many kinds, by what is wrong
        return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    lacking = {name for group in optimizer.param_groups for name in expected - group.keys()}
    if lacking:
        return f"its groups lack {sorted(lacking)}"
    for number, (group, options) in enumerate(zip(optimizer.param_groups, configured, strict=True)):
        for name, value in _options(group).items():
            if value != options[name]:
                return f"{name} of group {number} is {value:g}, expected {options[name]:g}"
    for number, (weight, kept) in enumerate(optimizer.state.items()):
        for name in _SHAPED_AS_WEIGHTS:
            found = kept.get(name)
            if isinstance(found, Tensor) and found.shape != weight.shape:
                return f"{name} of weight {number} has the shape {tuple(found.shape)}, expected {tuple(weight.shape)}"
    return ""


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: group[name] for name in _OF_THE_CONFIG if name in group}
    return {**options, "lr": group.get("initial_lr", group["lr"])}


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Names of the numbers and tensors that aren't finite."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _not_finite(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for key, one in enumerate(value):
            yield from _not_finite(one, f"{name}.{key}")
    elif isinstance(value, Tensor):  # a sum, which may overflow, takes a twentieth of the time
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            yield name
    elif isinstance(value, float) and not math.isfinite(value):
        yield name
