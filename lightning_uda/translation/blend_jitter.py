"""Colour jitter of contrastive learning (SimCLR, Chen et al., ICML 2020), an engine of T2S-DA."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_uda.ranges import HALF, NOT_NEGATIVE, SHARE, ranged
from lightning_uda.translation.photometric import PHASES, Translation, adjust_hsv

_LUMA = (0.2989, 0.587, 0.114)


class BlendJitter(Translation):
    """Random brightness, contrast, saturation and hue, as torchvision's `ColorJitter` changes them.

    Brightness multiplies, contrast blends with the image's mean grey, saturation with its grey version, and hue turns
    in HSV, each clamped to [0, 1]. Factors are drawn for each image, their order for the batch. `ColorJitter` adds
    brightness instead, which is another family's.

    Args:
        brightness: Half-width b of the factor, drawn from U(max(0, 1 - b), 1 + b).
        contrast: Half-width of the factor, drawn likewise.
        saturation: Half-width of the factor, drawn likewise.
        hue: Half-width h of the shift in turns, drawn from U(-h, h); at most 0.5.
        p: Probability of an image to be changed, 0-1.

    Raises:
        ValueError: If one is negative, the hue above 0.5, or the probability above 1.
    """

    @ranged(brightness=NOT_NEGATIVE, contrast=NOT_NEGATIVE, saturation=NOT_NEGATIVE, hue=HALF, p=SHARE)
    def __init__(
        self,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        p: float = 0.8,
    ) -> None:
        self.widths = (brightness, contrast, saturation, hue)
        self.p = p

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """Jittered batch, float (N, 3, H, W) in [0, 1]."""
        draws = torch.rand(5, len(image), generator=generator, dtype=torch.float32)
        order = torch.randperm(4, generator=generator).tolist()
        widths = torch.tensor(self.widths).unsqueeze(1)
        low = torch.cat([(1 - widths[:3]).clamp(min=0), -widths[3:]])
        high = torch.cat([1 + widths[:3], widths[3:]])
        factors = (low + (high - low) * draws[:4]).to(image, non_blocking=True).view(4, -1, 1, 1, 1)
        chosen = (draws[4] < self.p).to(image.device, non_blocking=True).view(-1, 1, 1, 1)
        return torch.where(chosen, blend_jitter(image, factors, order), image)


def blend_jitter(image: Tensor, factors: Tensor, order: list[int]) -> Tensor:
    """Applies the four operations to images in one order, clamping to [0, 1] after each.

    Args:
        image: RGB float (N, 3, H, W) in [0, 1].
        factors: Of brightness, contrast and saturation, and the hue's shift in turns, (4, N, 1, 1, 1).
        order: A permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.

    Returns:
        Float (N, 3, H, W) in [0, 1].
    """
    phases = torch.from_numpy(PHASES).to(image, non_blocking=True).view(1, 3, 1, 1)
    for operation in order:
        factor = factors[operation]
        if operation == 0:
            image = image * factor
        elif operation == 1:
            image = torch.lerp(_grey(image).mean(dim=(1, 2, 3), keepdim=True), image, factor)
        elif operation == 2:
            image = torch.lerp(_grey(image), image, factor)
        else:
            image = adjust_hsv(image, torch.ones_like(factor), phases + 6 * factor)
        image = image.clamp(0, 1)
    return image


def _grey(image: Tensor) -> Tensor:
    """Luma (N, 1, H, W) of RGB images."""
    red, green, blue = image.chunk(3, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
