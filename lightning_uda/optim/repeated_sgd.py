"""SGD that applies a group's update several times per step, as the published DACS program does by accident."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from lightning_uda.ranges import NOT_NEGATIVE, SHARE, ranged


class RepeatedSGD(torch.optim.Optimizer):
    """SGD with momentum whose groups may be updated more than once per step with the same gradient.

    The published programs list a parameter once for every module around it, and PyTorch then updated it once per
    entry: 1x the stem, 3x the blocks, 4x the shortcuts (DACS, as published). Each repeat does d = g + wd * p;
    v = momentum * v + d; p = p - lr * v with one buffer v. A group states its number of updates as `update_repeats`
    (default 1); `CaffeDeepLabV2` declares it in `parameter_groups`. Plain `torch.optim.SGD` ignores that entry.

    Args:
        params: Parameters or groups.
        lr: Base learning rate.
        momentum: Momentum factor.
        weight_decay: L2 penalty, added in every repeat.
    """

    @ranged(lr=NOT_NEGATIVE, momentum=SHARE, weight_decay=NOT_NEGATIVE)
    def __init__(self, params: ParamsT, lr: float = 2.5e-4, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "update_repeats": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs the updates of one step; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            buffers = [self._momentum_buffer(p) for p in params]
            for _ in range(group["update_repeats"]):
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, grads)
                torch._foreach_add_(buffers, params, alpha=group["weight_decay"])
                torch._foreach_add_(params, buffers, alpha=-group["lr"])
        return loss

    def _momentum_buffer(self, param: torch.Tensor) -> torch.Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer: torch.Tensor = state["momentum_buffer"]
        return buffer


def describe_updates(optimizer: torch.optim.Optimizer) -> str:
    """An optimiser in words: its class, and how often it updates a parameter in a step."""
    name = type(optimizer).__name__ + (" with Nesterov momentum" if optimizer.defaults.get("nesterov") else "")
    repeats = sorted(
        {group["update_repeats"] for group in optimizer.param_groups if "update_repeats" in optimizer.defaults}
    )
    if len(repeats) > 1 or repeats not in ([], [1]):
        return f"{name}, {'/'.join(map(str, repeats))} updates per step (reference)"
    return f"{name}, one update per step (clean)"
