"""DAFormer's decoder: embedded levels, fused by separable dilated convolutions (Hoyer et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_uda.networks.heads.base import Head
from lightning_uda.networks.heads.stacked import StackedLevels, conv_bn_relu, scores
from lightning_uda.ranges import CHANNELS, DROPPED, SIDE, ranged


class DAFormerHead(Head):
    """All levels brought to `channels` channels and the finest level's size, stacked and fused.

    Fusion: a 1x1 convolution and depth-wise separable 3x3 convolutions of the dilations, side by side, stacked; a 3x3
    convolution; each with BatchNorm and ReLU (separable ones after both of their parts). No image pooling. Then dropout
    of whole channels and a 1x1 convolution to logits, at the finest level's size.

    Args:
        channels: Channels of each level, branch and of the fused map.
        separable_dilations: Dilations of the separable convolutions.
        dropout: Share (0-1) of the fused map's channels that are zeroed in training.
    """

    align_corners = False
    class_rows = ("3.",)

    @ranged(channels=CHANNELS, separable_dilations=SIDE, dropout=DROPPED)
    def __init__(
        self, channels: int = 256, separable_dilations: Sequence[int] = (6, 12, 18), dropout: float = 0.1
    ) -> None:
        self.channels = channels
        self.separable_dilations = tuple(separable_dilations)
        self.dropout = dropout

    def build(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> nn.Module:
        """Makes the classifier of all levels."""
        stacked = self.channels * len(channels)
        return nn.Sequential(
            StackedLevels(channels, self.channels),
            SeparableASPP(stacked, self.channels, self.separable_dilations),
            nn.Dropout2d(self.dropout),
            scores(self.channels, num_classes),
        )


class SeparableASPP(nn.Module):
    """A 1x1 and separable dilated 3x3 convolutions side by side, fused by a 3x3 convolution (DeepLab-v3+).

    Args:
        in_channels: Channels of the input.
        channels: Channels of each branch and of the output.
        dilations: Dilations of the separable branches.
    """

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        separable = (
            nn.Sequential(
                conv_bn_relu(in_channels, in_channels, 3, dilation, groups=in_channels),
                conv_bn_relu(in_channels, channels),
            )
            for dilation in dilations
        )
        self.branches = nn.ModuleList([conv_bn_relu(in_channels, channels), *separable])
        self.fuse = conv_bn_relu(channels * len(self.branches), channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Fused map (N, channels, h, w) of features (N, in_channels, h, w)."""
        fused: Tensor = self.fuse(torch.cat([branch(features) for branch in self.branches], dim=1))
        return fused
