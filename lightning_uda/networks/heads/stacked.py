"""What the heads of transformers begin with: levels of several strides, embedded and stacked at one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StackedLevels(nn.Module):
    """A linear layer for each level, whose outputs are resized to the first level's size and stacked.

    Args:
        in_channels: Channels of the levels.
        channels: Channels that each is brought to.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Stacked features (N, levels * channels, h, w), as large as the first of the feature levels."""
        return stacked([embed(level) for embed, level in zip(self.embed, levels, strict=True)])


def stacked(levels: Sequence[Tensor]) -> Tensor:
    """Levels (N, channels, h, w) at the size of the first (bilinear, align_corners off), one on top of the other."""
    size = levels[0].shape[-2:]
    return torch.cat(
        [
            level if _has(level, size) else F.interpolate(level, size, mode="bilinear", align_corners=False)
            for level in levels
        ],
        dim=1,
    )


def _has(level: Tensor, size: Sequence[int]) -> bool:
    """Whether a level has a size already; never in exported and compiled graphs, which hold for all sizes."""
    return not torch.compiler.is_compiling() and level.shape[-2:] == size


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias that keeps the size, BatchNorm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def scores(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to logits, whose weights start from N(0, 0.01^2) and whose biases start at zero."""
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, 0.0, 0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
