"""Means over what all processes of a run have, instead of each process's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_global_means = ContextVar("global_means", default=False)


@contextmanager
def global_means(enabled: bool) -> Iterator[None]:
    """A block in which `mean_over_ranks` is over all processes, if there are several and `enabled` says so."""
    token = _global_means.set(enabled and dist.is_available() and dist.is_initialized())
    try:
        yield
    finally:
        _global_means.reset(token)


@torch.no_grad()
def mean_over_ranks(value: Tensor) -> Tensor:
    """A tensor's mean over all processes, float32, in a block of `global_means`; the tensor itself elsewhere.

    Gradients are averaged over processes; so a sum that is divided by the mean of their counts, rather than by the
    process's own, has the gradient of one process with all images.
    """
    if not _global_means.get():
        return value
    total = value.to(torch.float32, copy=True)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def divisor(count: Tensor) -> Tensor:
    """What a sum over so many pixels is divided by to be their mean: the count, or its mean over processes.

    Not 0: a sum over no pixel is 0, whatever it is divided by.
    """
    return mean_over_ranks(count).clamp(min=1e-6)
