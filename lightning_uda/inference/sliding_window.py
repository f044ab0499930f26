"""Overlapping windows over an image (HRDA, as published; the common "slide" protocol)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn

from lightning_uda.inference.policies import Inference, Scores, aligns_corners
from lightning_uda.ranges import COUNT, SIDE, ranged
from lightning_uda.resize import upsample
from lightning_uda.windows import window_starts


class SlidingWindow(Inference):
    """Windows of one size in steps over the image; their logits are averaged where they overlap.

    The last window of a row or column is moved back to end at the border, so every pixel is covered and no window
    reaches beyond the image. Where a side of the image is shorter than the window, the window is as short. Memory holds
    the logits of the whole image (4 N C H W bytes) and those of `windows_per_batch` windows.

    Args:
        crop: Height and width of a window; HRDA's.
        stride: Steps down and to the right; not longer than the window, else pixels would be left out.
        windows_per_batch: How many windows go through the network at once; changes memory and speed alone.
        align_corners: Whether corners stay aligned when logits are upsampled; `None` takes what the network declares.

    Raises:
        ValueError: If windows would leave pixels out, or a number is below 1.
    """

    @ranged(crop=SIDE, stride=SIDE, windows_per_batch=COUNT)
    def __init__(
        self,
        crop: tuple[int, int] = (1024, 1024),
        stride: tuple[int, int] = (512, 512),
        windows_per_batch: int = 4,
        align_corners: bool | None = None,
    ) -> None:
        if not all(1 <= step <= side for side, step in zip(crop, stride, strict=True)):
            raise ValueError(
                f"SlidingWindow: found a stride of {stride[0]} x {stride[1]} for windows of {crop[0]} x {crop[1]} "
                "(height x width); expected steps from 1 to the size of the window, so that no pixel is left out."
            )
        self.crop = crop
        self.stride = stride
        self.windows_per_batch = windows_per_batch
        self.align_corners = align_corners

    def scores(self, network: nn.Module, image: Tensor) -> Scores:
        """Mean logits of all windows that hold a pixel, float32, at the size of the image."""
        align_corners = aligns_corners(network, self.align_corners)
        sizes = tuple(image.shape[-2:])
        height, width = (min(side, whole) for side, whole in zip(self.crop, sizes, strict=True))
        rows = window_starts(sizes[0], height, self.stride[0])
        columns = window_starts(sizes[1], width, self.stride[1])
        windows = list(product(range(len(image)), rows, columns))
        total = torch.empty(0)
        for first in range(0, len(windows), self.windows_per_batch):
            chunk = windows[first : first + self.windows_per_batch]
            crops = torch.stack([image[i, :, top : top + height, left : left + width] for i, top, left in chunk])
            logits = upsample(network(crops), (height, width), align_corners)
            if first == 0:
                total = logits.new_zeros(len(image), logits.shape[1], *sizes, dtype=torch.float32)
            for (i, top, left), part in zip(chunk, logits, strict=True):
                total[i, :, top : top + height, left : left + width] += part
        coverage = torch.outer(_covered(rows, height, sizes[0]), _covered(columns, width, sizes[1]))
        mean = total.div_(coverage.to(total.device))
        return lambda size: upsample(mean, size, align_corners)


def _covered(starts: Sequence[int], window: int, whole: int) -> Tensor:
    """How many windows hold each pixel along a side, float32 (whole,)."""
    covered = torch.zeros(whole, dtype=torch.float32)
    for start in starts:
        covered[start : start + window] += 1
    return covered
