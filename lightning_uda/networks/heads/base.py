"""What a head declares to the network around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn


class Head(ABC):
    """The plan of a classifier: it holds settings only, so that one may be a default argument or serve several times.

    What it builds takes a sequence of feature levels (N, channels, h, w), fine to coarse, and gives logits
    (N, num_classes, h, w). A head that reads one level reads the last it is given.
    """

    align_corners: bool = True
    """How logits are upsampled for the losses: yes for DeepLab-v2 and its family, no for DAFormer's networks."""

    class_rows: tuple[str, ...] = ("",)
    """Beginnings of the names, in what it builds, of tensors that have a row for each class; by default all."""

    @abstractmethod
    def build(self, channels: Sequence[int], strides: Sequence[int], num_classes: int) -> nn.Module:
        """Makes the classifier.

        Args:
            channels: Channels of the levels that it will be given, fine to coarse.
            strides: Ratio of image to feature size of these levels.
            num_classes: Channels of the logits.

        Returns:
            Levels to logits.

        Raises:
            ValueError: If the settings are impossible, or don't go with these levels.
        """

    def initialize(self, classifier: nn.Module) -> None:  # noqa: B027  (most have nothing to add)
        """Draws initial weights of what was built; called once all parts of a network are made."""

    def notes(self) -> list[str]:
        """What a reader of a run's report should know of the head, a sentence each."""
        return []
