"""How an image is put through a network at test time: one interface for all policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from lightning_uda.ranges import SIDE, ranged
from lightning_uda.resize import Size, resize_images, upsample

Scores = Callable[[Size], Tensor]
"""Gives class scores float32 (N, C, *size) for a height and width; the network has been run already."""


class Inference(ABC):
    """Test-time policy: puts images through the network, then gives class scores at any size.

    Attributes:
        gives_probabilities: Whether scores are probabilities; they are logits otherwise.
    """

    gives_probabilities: bool = False

    @abstractmethod
    def scores(self, network: nn.Module, image: Tensor) -> Scores:
        """Puts a batch through the network.

        Args:
            network: Gives logits (N, C, h, w) for images.
            image: RGB float (N, 3, H, W) in [0, 1].

        Returns:
            A function that gives the scores at a height and width; the arg-max over C is the prediction. It may be
            called for several sizes and doesn't run the network again. Its results must not be changed in place.
        """

    def __call__(self, network: nn.Module, image: Tensor, size: Size) -> Tensor:
        """Class scores of a batch, float32 (N, C, *size); arguments as in `scores`."""
        return self.scores(network, image)(size)


class WholeImage(Inference):
    """One pass over the whole image; logits upsampled bilinearly (DACS, as published).

    Args:
        resize: Height and width the image is brought to before the pass (bilinear, antialiased); `None` keeps it.
        align_corners: Whether corners stay aligned when logits are upsampled; `None` takes what the network declares.
    """

    @ranged(resize=SIDE)
    def __init__(self, resize: tuple[int, int] | None = None, align_corners: bool | None = None) -> None:
        self.resize = resize
        self.align_corners = align_corners

    def scores(self, network: nn.Module, image: Tensor) -> Scores:
        """Logits of the pass."""
        if self.resize is not None:
            image = resize_images(image, self.resize)
        logits = network(image)
        align_corners = aligns_corners(network, self.align_corners)
        return lambda size: upsample(logits, size, align_corners)


def aligns_corners(network: nn.Module, wanted: bool | None) -> bool:
    """What is wanted, else what the network declares, else yes, as DeepLab-v2 and its family do."""
    return bool(getattr(network, "align_corners", True)) if wanted is None else wanted
