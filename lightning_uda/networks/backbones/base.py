"""What a backbone declares to the network around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_uda.networks.base import InputNormalization, parameter_group


class Backbone(nn.Module, ABC):
    """Turns normalised images into feature levels, fine to coarse.

    Args:
        normalization: The input normalisation that its weights were trained with.
        strides: Ratio of image to feature size of each level.
        channels: Channels of each level.

    Attributes:
        random_weights: False once it has fetched pretrained weights.
    """

    saved_names: ClassVar[Mapping[str, str]] = {}
    """Names in files, where they aren't those of the modules: beginnings of the names in a network ("backbone.",
    "classifier.") to what stands for them in state dicts of networks with this backbone. Empty: they are the same."""

    def __init__(self, normalization: InputNormalization, strides: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.normalization = normalization
        self.strides = tuple(strides)
        self.channels = tuple(channels)
        self.random_weights = True

    @abstractmethod
    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature levels (N, channels, h, w), fine to coarse, of normalised (N, 3, H, W) inputs."""

    def initialize(self) -> None:
        """Draws initial weights; a network calls it once, when all its parts are made and before weights are loaded."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters as groups whose names begin with "backbone" (see `parameter_group`)."""
        return [parameter_group("backbone", self.parameters())]

    def translate(self, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """A file's tensors under the names that this backbone's networks save them with.

        Args:
            tensors: As `read_weights` returns them.
            source: The file; used in messages.

        Raises:
            WeightsError: If they belong to a network that looks alike but computes otherwise.
        """
        return tensors

    def notes(self) -> list[str]:
        """What a reader of a run's report should know of the backbone, a sentence each."""
        return []
