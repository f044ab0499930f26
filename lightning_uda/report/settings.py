"""Which of the published DACS program's habits a run took over, as its config tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_uda.report.runs import Run, class_name, init_args

_NOT_RECORDED = "not recorded"
_ONE_UPDATE = "one update per step (clean)"
_REPEATED_UPDATES = {"CaffeDeepLabV2": "1/3/4 updates per step (reference)", "DeepLabV2": _ONE_UPDATE}
"""Updates by `RepeatedSGD`: a network's parameter groups declare them."""
_BRANCHES = {(6, 12): " (two of four, reference)", (6, 12, 18, 24): " (all four)"}


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """How a run updated its parameters and which ASPP branches its classifier summed.

    The published program updates a parameter 1, 3 or 4 times per step and sums two of DeepLab-v2's four branches.

    Args:
        config: Content of the run's `config.yaml`; empty if there is none.

    Returns:
        "optimiser" and "ASPP branches"; the latter only of a network that has them.
    """
    model = init_args(config.get("model"))
    network = model.get("network")
    settings = {"optimiser": _optimizer(model.get("optimizer"), class_name(network))}
    dilations = init_args(network).get("dilations")
    if dilations:
        settings["ASPP branches"] = ", ".join(map(str, dilations)) + _BRANCHES.get(tuple(dilations), "")
    return settings


def settings_text(config: Mapping[str, Any]) -> str:
    """The settings of a config in words."""
    return "; ".join(f"{name}: {value}" for name, value in settings_of(config).items())


def settings_lines(runs: Sequence[Run]) -> list[str]:
    """The settings in words, one line for all runs that share them."""
    titles: dict[str, list[str]] = {}
    for run in runs:
        titles.setdefault(settings_text(run.config), []).append(run.title)
    if len(titles) == 1:
        return list(titles)
    return [f"{', '.join(names)}: {text}" for text, names in titles.items()]


def _optimizer(optimizer: object, network: str) -> str:
    name = class_name(optimizer)
    if not name:
        return _NOT_RECORDED
    if name == "RepeatedSGD":
        return f"{name}, {_REPEATED_UPDATES.get(network, f'updates per step as {network} declares')}"
    nesterov = " with Nesterov momentum" if init_args(optimizer).get("nesterov") else ""
    return f"{name}{nesterov}, {_ONE_UPDATE}"
