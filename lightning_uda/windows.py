"""Parts of images: cut out, put back in their place, and slid over the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.resize import Size

Window = tuple[int, int, int, int]
"""Part of an image: its first row and column, its height and its width, in pixels."""


def cut(tensor: Tensor, window: Window) -> Tensor:
    """A part of images or maps (..., H, W), which shares their memory."""
    top, left, height, width = window
    return tensor[..., top : top + height, left : left + width]


def place(part: Tensor, window: Window, size: Size) -> Tensor:
    """Maps (..., *size) that are zero but for a window, which holds a part (..., height, width)."""
    top, left, height, width = window
    return F.pad(part, (left, size[1] - left - width, top, size[0] - top - height))


def window_starts(whole: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along a side: multiples of the stride, the last one moved back to the border."""
    last = whole - window
    return [*range(0, last, stride), last]


def mean_of_windows(parts: Iterable[Tensor], windows: Sequence[Window], size: Size) -> Tensor:
    """Maps of windows put together, averaged where these overlap.

    Args:
        parts: Of each window, (N, C, height, width); asked for one at a time.
        windows: Where they lie; all of the map has to be covered.
        size: Height and width of the whole map.

    Returns:
        float32 (N, C, *size).
    """
    total, covered = torch.zeros(()), torch.zeros(())
    for number, (part, window) in enumerate(zip(parts, windows, strict=True)):
        if number == 0:
            total = part.new_zeros(*part.shape[:2], *size, dtype=torch.float32)
            covered = part.new_zeros(size, dtype=torch.float32)
        cut(total, window).add_(part)
        cut(covered, window).add_(1)
    return total / covered
