"""Colours of a strongly augmented view: brightness, contrast and HSV shifts, grey, blur (EHTDI, as published).

The numbers are the defaults of albumentations 1.1.0, which the program used on bytes; here nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_uda.ranges import NOT_NEGATIVE, POSITIVE, SHARE, SIDE, ranged
from lightning_uda.translation.photometric import (
    PHASES,
    RandomApply,
    Translation,
    gaussian_kernels,
    hue_ramps,
    separable_filter,
)


def shift_hsv(image: Tensor, saturation: Tensor, value: Tensor, phases: Tensor) -> Tensor:
    """Adds to hue, saturation and value; the hue wraps around, the others are clamped to [0, 1].

    A grey pixel has hue 0, so that more saturation makes it red, as in OpenCV and the published program; later
    versions of albumentations leave it grey.

    Args:
        image: RGB float (N, 3, H, W) in [0, 1].
        saturation: Shifts of the saturation, (N, 1, 1, 1).
        value: Shifts of the value, (N, 1, 1, 1).
        phases: `PHASES` plus the hue shift in sextants, (N, 3, 1, 1).

    Returns:
        Float (N, 3, H, W) in [0, 1].
    """
    brightest, chroma, ramps = hue_ramps(image, phases)
    share = chroma.div_(brightest.clamp(min=torch.finfo(image.dtype).tiny)).add_(saturation).clamp_(0, 1)
    return ramps.mul_(share).neg_().add_(1).mul_((brightest + value).clamp_(0, 1))


class HSVJitter(Translation):
    """Random contrast and brightness, then random shifts in HSV; all drawn for each image.

    Args:
        brightness: Half-width b of the shift, drawn from U(-b, b), of images in [0, 1].
        contrast: Half-width c of the factor about zero, drawn from U(1 - c, 1 + c); applied before the shift.
        hue: Half-width of the hue shift, in OpenCV's units of 2 degrees (180 make a turn).
        saturation: Half-width of the saturation shift, of 255.
        value: Half-width of the value shift, of 255.
    """

    @ranged(brightness=NOT_NEGATIVE, contrast=SHARE, hue=NOT_NEGATIVE, saturation=NOT_NEGATIVE, value=NOT_NEGATIVE)
    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        hue: float = 20.0,
        saturation: float = 30.0,
        value: float = 20.0,
    ) -> None:
        units = (1.0, 1.0, 6 / 180, 1 / 255, 1 / 255)  # hue in sextants
        widths = np.array([contrast, brightness, hue, saturation, value]) * units
        self.half_widths = widths.astype(np.float32)[:, None]

    def draw(self, count: int, generator: torch.Generator) -> npt.NDArray[np.float32]:
        """Draws for `count` images (5, N): contrast and brightness, hue in sextants, saturation and value in [0, 1]."""
        draws = torch.rand(5, count, generator=generator, dtype=torch.float32).numpy()
        shifts: npt.NDArray[np.float32] = self.half_widths * (2 * draws - 1)
        return shifts

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """Jittered batch, float (N, 3, H, W) in [0, 1]."""
        contrast, brightness, hue, saturation, value = self.draw(image.shape[0], generator)
        packed = np.stack([1 + contrast, brightness, saturation, value, *(PHASES + hue)])
        values = torch.from_numpy(packed[:, :, None, None, None]).to(image, non_blocking=True)
        image = torch.addcmul(values[1], image, values[0]).clamp_(0, 1)
        return shift_hsv(image, values[2], values[3], torch.cat(values[4:].unbind(0), dim=1))


class Grey(Translation):
    """Luma in all three channels, by the weights of OpenCV's RGB2GRAY (ITU-R BT.601)."""

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """Grey batch, float (N, 3, H, W) in [0, 1]; the channels share their memory."""
        red, green, blue = image.chunk(3, dim=1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).expand_as(image)


class KernelBlur(Translation):
    """Gaussian blur whose kernel size is drawn for each image; borders are reflected.

    The standard deviation of a kernel of size k is 0.3 ((k - 1) / 2 - 1) + 0.8, as OpenCV's manual derives it: 0.8
    for 3 pixels and 1.1 for 5. OpenCV itself has tabled weights for sizes up to 7, which differ from these by at most
    0.022 (1/2 instead of 0.522 in the middle of 3).

    Args:
        sizes: Kernel sizes in pixels, odd; images must be larger than half of the largest.
        odds: How often each is drawn, in proportion to each other.
    """

    @ranged(sizes=SIDE, odds=POSITIVE)
    def __init__(self, sizes: Sequence[int] = (3, 5), odds: Sequence[float] = (1.0, 2.0)) -> None:
        if len(sizes) != len(odds) or not sizes or any(k < 3 or k % 2 == 0 for k in sizes) or min(odds) <= 0:
            raise ValueError(
                f"KernelBlur: found sizes={list(sizes)}, odds={list(odds)}; expected odd sizes of at least 3 and, for "
                "each, odds above 0."
            )
        reach = max(sizes) // 2
        self.kernels = np.concatenate([np.pad(_opencv_kernel(k), ((0, 0), (reach - k // 2,) * 2)) for k in sizes])
        self.odds = torch.tensor(odds, dtype=torch.float32)

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """Blurred batch, float (N, 3, H, W) in [0, 1]."""
        drawn = torch.multinomial(self.odds, image.shape[0], replacement=True, generator=generator)
        kernels = self.kernels[drawn.numpy()]
        return separable_filter(image, kernels, kernels)


def _opencv_kernel(size: int) -> npt.NDArray[np.float32]:
    """Gaussian of the standard deviation that goes with a kernel size, (1, size)."""
    return gaussian_kernels(np.array([0.3 * ((size - 1) / 2 - 1) + 0.8], dtype=np.float32), size // 2)


class ViewJitter(Translation):
    """What EHTDI does to the strong view of an image: jitter, grey and blur, each with a gate for each image.

    Args:
        brightness: As in `HSVJitter`.
        contrast: As in `HSVJitter`.
        hue: As in `HSVJitter`.
        saturation: As in `HSVJitter`.
        value: As in `HSVJitter`.
        jitter_p: Probability of all of the above.
        grey_p: Probability of losing the colours.
        blur_sizes: `sizes` of `KernelBlur`.
        blur_odds: `odds` of `KernelBlur`.
        blur_p: Probability of blurring.
    """

    @ranged(
        brightness=NOT_NEGATIVE,
        contrast=SHARE,
        hue=NOT_NEGATIVE,
        saturation=NOT_NEGATIVE,
        value=NOT_NEGATIVE,
        jitter_p=SHARE,
        grey_p=SHARE,
        blur_sizes=SIDE,
        blur_odds=POSITIVE,
        blur_p=SHARE,
    )
    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        hue: float = 20.0,
        saturation: float = 30.0,
        value: float = 20.0,
        jitter_p: float = 0.8,
        grey_p: float = 0.2,
        blur_sizes: Sequence[int] = (3, 5),
        blur_odds: Sequence[float] = (1.0, 2.0),
        blur_p: float = 0.5,
    ) -> None:
        self.jitter = RandomApply(HSVJitter(brightness, contrast, hue, saturation, value), jitter_p, "image")
        self.grey = RandomApply(Grey(), grey_p, "image")
        self.blur = RandomApply(KernelBlur(blur_sizes, blur_odds), blur_p, "image")

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """Augmented batch, float (N, 3, H, W) in [0, 1]."""
        for stage in (self.jitter, self.grey, self.blur):
            image = stage(image, generator)
        return image
