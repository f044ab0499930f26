"""How an image is put through a network at test time: one interface for all policies."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_uda.losses.cross_entropy import upsample


class Inference(ABC):
    """Test-time policy."""

    @abstractmethod
    def __call__(self, network: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Class scores of a batch at the wanted size.

        Args:
            network: Gives logits (N, C, h, w) for images.
            image: RGB float (N, 3, H, W) in [0, 1].
            size: Height and width of the result.

        Returns:
            float (N, C, *size); the arg-max over C is the prediction.
        """


class WholeImage(Inference):
    """One pass over the whole image; logits upsampled bilinearly with aligned corners (DACS, as published).

    Args:
        resize: Height and width the image is brought to before the pass (bilinear, antialiased); `None` keeps it.
    """

    def __init__(self, resize: tuple[int, int] | None = None) -> None:
        self.resize = resize

    def __call__(self, network: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits float (N, C, *size)."""
        if self.resize is not None and self.resize != tuple(image.shape[-2:]):
            image = F.interpolate(image, size=self.resize, mode="bilinear", antialias=True)
        return upsample(network(image), size)
