"""A linear classifier of features, as foundation models are probed with (DINOv2, Oquab et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_uda.networks.heads.base import Head
from lightning_uda.networks.heads.stacked import scores, stacked


class LinearHead(Head):
    """All levels at the first level's size, stacked, normalised by BatchNorm, and a 1x1 convolution to logits.

    With a backbone of one level that is the linear probe of its last features.
    """

    align_corners = False
    class_rows = ("1.",)

    def build(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> nn.Module:
        """Makes the classifier of all levels."""
        return _OfStackedLevels(nn.BatchNorm2d(sum(channels)), scores(sum(channels), num_classes))


class _OfStackedLevels(nn.Sequential):
    """Layers that are given all levels, stacked."""

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (N, num_classes, h, w) at the first level's size."""
        logits: Tensor = super().forward(stacked(levels))  # type: ignore[no-untyped-call]
        return logits
