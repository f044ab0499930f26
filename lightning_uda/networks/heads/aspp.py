"""DeepLab-v2's classifier: a sum of dilated convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from lightning_uda.networks.heads.base import Head
from lightning_uda.ranges import SIDE, ranged

_IN_WORDS = {(6, 12): " (two of four, reference)", (6, 12, 18, 24): " (all four)"}


class ASPP(Head):
    """Parallel dilated 3x3 convolutions of the last level, summed (`ASPPClassifier`).

    Args:
        dilations: The dilations whose branches are summed.
        branches: The dilations whose branches are held, in this order; by default those summed. Published files hold
            (6, 12, 18, 24), of which their program sums the first two.
    """

    @ranged(dilations=SIDE, branches=SIDE)
    def __init__(self, dilations: Sequence[int] = (6, 12), branches: Sequence[int] | None = None) -> None:
        self.dilations = tuple(dilations)
        self.branches = self.dilations if branches is None else tuple(branches)

    def build(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> nn.Module:
        """Makes the classifier of the last level.

        Raises:
            ValueError: If no branch is summed, one is named twice, or one isn't held.
        """
        return ASPPClassifier(channels[-1], num_classes, self.branches, self.dilations)

    def notes(self) -> list[str]:
        """Which branches are summed."""
        return [f"ASPP branches: {', '.join(map(str, self.dilations))}{_IN_WORDS.get(self.dilations, '')}"]


class ASPPClassifier(nn.Module):
    """Parallel dilated 3x3 convolutions with bias, summed (atrous spatial pyramid pooling of DeepLab-v2).

    Weights start from N(0, 0.01^2), biases from PyTorch's default. Branches that aren't summed can be held as well,
    so that the names of published weights fit; they are out of the graph and take no gradient.

    Args:
        in_channels: Channels of the last level.
        num_classes: Number of output channels.
        dilations: Dilation (and padding) of each branch that is built.
        summed: The dilations whose branches make the logits; by default all of `dilations`.

    Raises:
        ValueError: If no branch is summed, one is named twice, or one isn't built.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dilations: Sequence[int] = (6, 12),
        summed: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        dilations = tuple(dilations)
        self.summed = dilations if summed is None else tuple(summed)
        _check_dilations(dilations, self.summed)
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self._summed_indices = [dilations.index(dilation) for dilation in self.summed]
        for index, branch in enumerate(self.conv2d_list):
            nn.init.normal_(cast(nn.Conv2d, branch).weight, 0.0, 0.01)
            branch.requires_grad_(index in self._summed_indices)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (N, num_classes, h, w) of feature levels, the last of which is (N, in_channels, h, w)."""
        features = levels[-1]
        first, *others = self._summed_indices
        logits: Tensor = self.conv2d_list[first](features)
        for index in others:
            logits = logits + self.conv2d_list[index](features)
        return logits


def _check_dilations(built: tuple[int, ...], summed: tuple[int, ...]) -> None:
    if not summed or len(set(summed)) != len(summed) or len(set(built)) != len(built) or not set(summed) <= set(built):
        raise ValueError(
            f"Dilations of the classifier: found branches {built}, of which {summed} are summed; expected distinct "
            "branches and at least one of them summed, e.g. (6, 12) or (6, 12, 18, 24)."
        )
