"""Activation checkpointing: memory for time (Chen et al., 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_uda.precision import computed_again


def recompute(block: nn.Module) -> None:
    """Has a block forget what it computed inside in the forward pass and compute it again in the backward pass.

    The gradients stay the same: dropout and drop-path draw the same numbers again, and BatchNorm counts the batch once.

    Args:
        block: Anything that gives the same output for the same input, and doesn't change the input.
    """
    block.forward = partial(_recomputed, block)


def _recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = partial(_contexts, block)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _as_before(block, computed_again())


@contextmanager
def _as_before(block: nn.Module, precision: AbstractContextManager[object]) -> Iterator[None]:
    with _statistics_kept(block), precision:
        yield


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch's statistics, but doesn't take them into its running ones."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter
