"""Two dilated convolutions, one after the other: Wide ResNet-38's classifier (Wu et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from lightning_uda.networks.heads.base import Head
from lightning_uda.ranges import CHANNELS, SIDE, ranged


class DilatedConvolutions(Head):
    """Two dilated 3x3 convolutions of the last level, a ReLU between them, initialised as He et al. do.

    Args:
        channels: Channels between the two.
        dilation: Dilation (and padding) of both.
    """

    class_rows = ("2.",)

    @ranged(channels=CHANNELS, dilation=SIDE)
    def __init__(self, channels: int = 512, dilation: int = 12) -> None:
        self.channels = channels
        self.dilation = dilation

    def build(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> nn.Module:
        """Makes the classifier of the last level."""
        return _OfLastLevel(
            nn.Conv2d(channels[-1], self.channels, 3, padding=self.dilation, dilation=self.dilation),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.channels, num_classes, 3, padding=self.dilation, dilation=self.dilation),
        )

    def initialize(self, classifier: nn.Module) -> None:
        """Weights of variance 2 / fan-in, biases zero."""
        for module in classifier.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))


class _OfLastLevel(nn.Sequential):
    """Layers that are given the last level."""

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (N, num_classes, h, w)."""
        return cast(Tensor, super().forward(levels[-1]))  # type: ignore[no-untyped-call]
