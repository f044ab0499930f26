"""SegFormer's all-MLP decoder (Xie et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_uda.networks.heads.base import Head
from lightning_uda.networks.heads.stacked import StackedLevels, conv_bn_relu, scores
from lightning_uda.ranges import CHANNELS, DROPPED, ranged


class SegFormerHead(Head):
    """All levels brought to `channels` channels and the finest level's size, stacked, and fused by 1x1 convolutions.

    Logits are at the finest level's size.

    Args:
        channels: Channels of each level and of the fused map; 256 for MiT-B0 and B1, 768 for the larger ones.
        dropout: Share (0-1) of the fused map's channels that are zeroed in training.
    """

    align_corners = False
    class_rows = ("3.",)

    @ranged(channels=CHANNELS, dropout=DROPPED)
    def __init__(self, channels: int = 256, dropout: float = 0.1) -> None:
        self.channels = channels
        self.dropout = dropout

    def build(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> nn.Module:
        """Makes the classifier of all levels."""
        return nn.Sequential(
            StackedLevels(channels, self.channels),
            conv_bn_relu(self.channels * len(channels), self.channels),
            nn.Dropout2d(self.dropout),
            scores(self.channels, num_classes),
        )
