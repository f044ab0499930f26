"""FCN-8s's classifier: scores of levels, added up as they are doubled in size (Long et al., CVPR 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_uda.networks.heads.base import Head
from lightning_uda.resize import size_of, top_left


class LevelScores(Head):
    """One score for each level; the coarsest is doubled in size and added to the next, and so on to the finest.

    A 1x1 score and a bilinear doubling can change places, so all scores are here one 1x1 convolution of the levels
    stacked at the size of the finest: the same logits. Doublings are fixed at bilinear, scores start at zero.
    """

    def build(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> nn.Module:
        """Makes the scores.

        Raises:
            ValueError: If a level isn't half the size of the one before.
        """
        if any(2 * finer != coarser for finer, coarser in pairwise(strides)):
            raise ValueError(
                f"LevelScores: found levels of strides {tuple(strides)}, expected each twice the one before, such as "
                "VGG's (8, 16, 32). Take another head for this backbone."
            )
        return _StackedScores(sum(channels), num_classes, 1)

    def initialize(self, classifier: nn.Module) -> None:
        """All scores zero."""
        for parameter in classifier.parameters():
            nn.init.zeros_(parameter)


class _StackedScores(nn.Conv2d):
    """A 1x1 convolution of all levels, stacked at the size of the finest."""

    def forward(self, levels: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Logits (N, num_classes, h, w) at the size of the first level."""
        *finer_levels, stacked = levels
        for finer in reversed(finer_levels):
            stacked = torch.cat([finer, _doubled(stacked, finer)], dim=1)
        return super().forward(stacked)


def _doubled(features: Tensor, like: Tensor) -> Tensor:
    """Twice the size, bilinear, without the last row or column where `like` (N, ..., h, w) has an odd side."""
    doubled = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
    return top_left(doubled, size_of(like))
