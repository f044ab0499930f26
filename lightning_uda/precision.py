"""Parts of a step that need float32 under mixed precision, and mixed precision without numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_HALVES = (torch.bfloat16, torch.float16)
_IN_HALF = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention),
    *(torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm),
}
_IN_FLOAT32 = {
    *(F.layer_norm, F.softmax, F.log_softmax, F.cross_entropy, F.nll_loss, F.normalize),
    *(torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.pow, torch.sum, torch.prod, torch.cumsum),
    *(Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.sum, Tensor.prod, Tensor.norm),
}
_off = ContextVar("off", default=False)
_half: ContextVar[torch.dtype | None] = ContextVar("half", default=None)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocasting off on a device, where it has it; inputs have to be float32 already."""
    if device.type == "meta":
        return _switched_off()
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def computed_again() -> AbstractContextManager[object]:
    """For a backward pass that computes a part again, in which `MetaAutocast` is off: its casts as they are now."""
    half = _half.get()
    return nullcontext() if half is None else MetaAutocast(half)


class MetaAutocast(TorchFunctionMode):
    """Autocasting on torch's device "meta", whose tensors have shapes but no numbers; `torch.autocast` has none there.

    It computes in 16 bits and in float32 what `torch.autocast` does on a GPU, among what networks and losses here use.

    Args:
        half: The type of 16 bits; `None` changes nothing.
    """

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self._half = half
        self._cast: dict[int, Tensor] = {}  # weights, once for all calls

    def __enter__(self) -> Self:
        """Casts from here on."""
        self._before = _half.set(self._half)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Casts no more."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _half.reset(self._before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function with its arguments cast."""
        kwargs = kwargs or {}
        if self._half is not None and not _off.get():
            if func in _IN_HALF:
                args, kwargs = tree_map_only(Tensor, self._halved, (args, kwargs))
            elif func in _IN_FLOAT32:
                args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)

    def _halved(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32 or not tensor.is_meta:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return tensor.to(self._half)
        key = id(tensor)
        if key not in self._cast or (tensor.requires_grad and torch.is_grad_enabled() > self._cast[key].requires_grad):
            self._cast[key] = tensor.to(self._half)
        return self._cast[key]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor


@contextmanager
def _switched_off() -> Iterator[None]:
    before = _off.set(True)
    try:
        yield
    finally:
        _off.reset(before)
