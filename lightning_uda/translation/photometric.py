"""Colour jitter and Gaussian blur of whole batches on the device (DACS, as published).

Images are RGB in [0, 1]. Random numbers come from a CPU generator, so that a step draws the same ones on every device
and no draw has to be read back from an accelerator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


class Translation(ABC):
    """Changes how images look, never where things are."""

    @abstractmethod
    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """New version of a batch.

        Args:
            image: RGB float (N, 3, H, W) in [0, 1].
            generator: Source of randomness, on the CPU.

        Returns:
            Float (N, 3, H, W) in [0, 1].
        """


@dataclass(frozen=True)
class JitterParameters:
    """What one jitter call draws, one entry per image.

    Attributes:
        brightness: (N,), the shift added is brightness - 1.
        contrast: (N,), factor about zero.
        saturation: (N,), factor on the saturation.
        hue: (N,), shift in full turns.
        order: int64 (N, 4), a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: Tensor


_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def color_jitter(image: Tensor, parameters: JitterParameters) -> Tensor:
    """Applies the four operations to each image in its own order, clamping to [0, 1] after each.

    Brightness is additive and contrast multiplies about zero, as in the augmentation library of 2020 that DACS used.
    Saturation and hue act in HSV; where one follows the other in an image they share one conversion.

    Args:
        image: RGB float (N, 3, H, W) in [0, 1].
        parameters: What to apply.

    Returns:
        Float (N, 3, H, W) in [0, 1].
    """
    in_hsv = parameters.order >= _SATURATION
    for slot in range(4):
        operation = parameters.order[:, slot]
        scale = torch.where(operation == _CONTRAST, parameters.contrast, 1.0)
        shift = torch.where(operation == _BRIGHTNESS, parameters.brightness - 1, 0.0)
        image = _per_image(shift, image).addcmul(image, _per_image(scale, image)).clamp_(0, 1)

        merged = in_hsv[:, slot + 1] if slot < 3 else torch.zeros_like(in_hsv[:, 0])
        follows = in_hsv[:, slot - 1] if slot > 0 else torch.zeros_like(in_hsv[:, 0])
        chosen = in_hsv[:, slot] & ~follows
        saturation = torch.where(merged | (operation == _SATURATION), parameters.saturation, 1.0)
        hue = torch.where(merged | (operation == _HUE), parameters.hue, 0.0)
        if chosen.all():
            image = adjust_hsv(image, _per_image(saturation, image), _per_image(hue, image))
        elif chosen.any():
            index = chosen.nonzero().squeeze(1)
            part = index.to(image.device, non_blocking=True)
            image[part] = adjust_hsv(image[part], _per_image(saturation[index], image), _per_image(hue[index], image))
    return image


def adjust_hsv(image: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Multiplies the HSV saturation (clamped to 1) and shifts the hue.

    Args:
        image: RGB float (N, 3, H, W) in [0, 1].
        saturation: Factors, (N, 1, 1, 1).
        hue: Shifts in full turns, (N, 1, 1, 1).

    Returns:
        Float (N, 3, H, W) in [0, 1].
    """
    value = image.amax(dim=1, keepdim=True)
    chroma = value - image.amin(dim=1, keepdim=True)
    red, green, blue = image.unbind(1)
    # Hue in sextants: the difference of the other two channels over the chroma, plus 0, 2 or 4 by the largest channel.
    sextant = torch.where(
        value.squeeze(1) == red,
        green - blue,
        torch.where(value.squeeze(1) == green, blue - red, red - green).add_(
            torch.where(value.squeeze(1) == green, 2.0, 4.0).mul_(chroma.squeeze(1))
        ),
    ).unsqueeze(1) / chroma.clamp(min=torch.finfo(image.dtype).tiny)
    phase = torch.tensor([5.0, 3.0, 1.0], dtype=image.dtype).to(image.device, non_blocking=True).view(1, 3, 1, 1)
    k = (sextant + (phase + 6 * hue)).remainder_(6)
    ramp = torch.minimum(k, 4 - k).clamp_(0, 1)
    return value - torch.minimum(chroma * saturation, value) * ramp


class ColorJitter(Translation):
    """Random brightness, contrast, saturation and hue; factors and order are drawn for each image.

    Args:
        brightness: Half-width b of the additive shift, drawn from U(-b, b).
        contrast: Half-width c of the factor about zero, drawn from U(1 - c, 1 + c).
        saturation: Half-width s of the factor, drawn from U(1 - s, 1 + s).
        hue: Half-width h of the hue shift, drawn from U(-h, h).
        hue_unit: "turns" (+-0.25 is +-90 degrees; the likelier reading of DACS) or "radians" (+-14.3 degrees; DSP).
    """

    def __init__(
        self,
        brightness: float = 0.25,
        contrast: float = 0.25,
        saturation: float = 0.25,
        hue: float = 0.25,
        hue_unit: Literal["turns", "radians"] = "turns",
    ) -> None:
        if min(brightness, contrast, saturation, hue) < 0 or max(contrast, saturation) > 1:
            raise ValueError(
                f"ColorJitter: found brightness={brightness}, contrast={contrast}, saturation={saturation}, hue={hue}; "
                "expected half-widths >= 0, for contrast and saturation at most 1."
            )
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue if hue_unit == "turns" else hue / (2 * math.pi)

    def draw(self, count: int, generator: torch.Generator) -> JitterParameters:
        """Draws the parameters of `count` images."""
        spread = torch.rand(4, count, generator=generator).mul_(2).sub_(1)
        order = torch.rand(count, 4, generator=generator).argsort(dim=1)
        return JitterParameters(
            1 + self.brightness * spread[0],
            1 + self.contrast * spread[1],
            1 + self.saturation * spread[2],
            self.hue * spread[3],
            order,
        )

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Jittered batch, float (N, 3, H, W) in [0, 1]."""
        return color_jitter(image, self.draw(image.shape[0], generator))


def blur_kernel_size(length: int) -> int:
    """Kernel size along an axis of `length` pixels: a tenth, rounded up, and made odd by taking one off."""
    size = math.ceil(0.1 * length)
    return size if size % 2 else size - 1


def gaussian_blur(image: Tensor, sigma: Tensor, max_sigma: float) -> Tensor:
    """Separable Gaussian blur with one sigma for each image and reflected borders.

    Args:
        image: Float (N, C, H, W).
        sigma: Standard deviations in pixels, (N,), positive.
        max_sigma: Upper bound of sigma. Kernels reach `blur_kernel_size` pixels as in the published program, but not
            further than 5 sigma, where less than 1e-6 of the weight is left.

    Returns:
        Float (N, C, H, W).
    """
    for dim in (2, 3):
        radius = min((blur_kernel_size(image.shape[dim]) - 1) // 2, math.ceil(5 * max_sigma))
        if radius > 0:
            image = _blur_axis(image, sigma, radius, dim)
    return image


def _blur_axis(image: Tensor, sigma: Tensor, radius: int, dim: int) -> Tensor:
    offset = torch.arange(-radius, radius + 1, dtype=sigma.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.unsqueeze(1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(image, non_blocking=True)
    padding = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
    padded = F.pad(image, padding, mode="reflect")
    length = image.shape[dim]
    result = padded.narrow(dim, radius, length) * kernel[:, radius].view(-1, 1, 1, 1)
    for r in range(1, radius + 1):
        both = padded.narrow(dim, radius - r, length) + padded.narrow(dim, radius + r, length)
        result.addcmul_(both, kernel[:, radius + r].view(-1, 1, 1, 1))
    return result


class GaussianBlur(Translation):
    """Random Gaussian blur, sigma drawn for each image.

    Args:
        sigma: Range of the standard deviation in pixels.
    """

    def __init__(self, sigma: tuple[float, float] = (0.15, 1.15)) -> None:
        if not 0 < sigma[0] <= sigma[1]:
            raise ValueError(f"GaussianBlur: found sigma={sigma}, expected 0 < lower <= upper.")
        self.sigma = sigma

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Blurred batch, float (N, 3, H, W) in [0, 1]."""
        low, high = self.sigma
        sigma = low + (high - low) * torch.rand(image.shape[0], generator=generator)
        return gaussian_blur(image, sigma, high)


class RandomApply(Translation):
    """Applies a translation to the whole batch with some probability; the gate is shared by its images.

    Args:
        translation: What to apply.
        p: Probability, 0-1.
    """

    def __init__(self, translation: Translation, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"RandomApply: found p={p}, expected a probability in [0, 1].")
        self.translation = translation
        self.p = p

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The translated batch, or the given one."""
        gate = torch.rand((), generator=generator)
        return self.translation(image, generator) if gate < self.p else image


class StrongAugmentation(Translation):
    """What DACS does to mixed images: colour jitter, then blur, each behind a gate shared by the batch.

    Args:
        jitter: The jitter; `None` leaves it out.
        jitter_p: Probability of jittering.
        blur: The blur; `None` leaves it out.
        blur_p: Probability of blurring.
    """

    def __init__(
        self,
        jitter: Translation | None = ColorJitter(),
        jitter_p: float = 0.8,
        blur: Translation | None = GaussianBlur(),
        blur_p: float = 0.5,
    ) -> None:
        self.stages = [RandomApply(stage, p) for stage, p in ((jitter, jitter_p), (blur, blur_p)) if stage is not None]

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented batch, float (N, 3, H, W) in [0, 1]."""
        for stage in self.stages:
            image = stage(image, generator)
        return image


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1).to(like, non_blocking=True)
