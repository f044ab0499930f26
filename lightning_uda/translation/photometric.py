"""Colour jitter and Gaussian blur of whole batches on the device (DACS, as published).

Images are RGB in [0, 1]. Random numbers come from a CPU generator, so that a step draws the same ones on every device
and no draw has to be read back from an accelerator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.precision import full_precision
from lightning_uda.ranges import BLUR, NOT_NEGATIVE, SHARE, ranged


class Translation(ABC):
    """Changes how images look, never where things are."""

    @abstractmethod
    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """New version of a batch.

        Args:
            image: RGB float (N, 3, H, W) in [0, 1].
            generator: Source of randomness, on the CPU.
            other: Images of the other domain, uint8 or float in [0, 1], for translations that take their style from
                them.

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

    brightness: npt.NDArray[np.float32]
    contrast: npt.NDArray[np.float32]
    saturation: npt.NDArray[np.float32]
    hue: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64]


_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
PHASES = np.array([5, 3, 1], dtype=np.float32).reshape(3, 1)
"""Phases (3, 1) of red, green and blue in the hue circle, in sextants."""


def color_jitter(image: Tensor, parameters: JitterParameters) -> Tensor:
    """Applies the four operations to each image in its own order, clamping to [0, 1] after each.

    Brightness is additive and contrast multiplies about zero, as in the augmentation library of 2020 that DACS used.
    Saturation and hue act in HSV; where one follows the other in an image they share one conversion. So every order is
    a chain of linear step, conversion, linear step, conversion, linear step, of which some do nothing.

    Args:
        image: RGB float (N, 3, H, W) in [0, 1].
        parameters: What to apply.

    Returns:
        Float (N, 3, H, W) in [0, 1].
    """
    linear, saturation, phases = _chain(parameters)
    packed = np.concatenate([linear.reshape(12, -1), saturation, phases.reshape(6, -1)])
    values = torch.from_numpy(packed[:, :, None, None, None]).to(image, non_blocking=True).unbind(0)
    for stage in range(3):
        if not np.array_equal(linear[stage], np.broadcast_to(_IDENTITY, linear[stage].shape)):
            scale, shift, low, high = values[4 * stage : 4 * stage + 4]
            image = torch.clamp(torch.addcmul(shift, image, scale), low, high)
        if stage == 0:
            image = adjust_hsv(image, values[12], torch.cat(values[14:17], dim=1))
        elif stage == 1 and (twice := np.flatnonzero(np.isfinite(saturation[1]))).size:
            part = torch.from_numpy(twice).to(image.device, non_blocking=True)
            factor, phase = values[13][part], torch.cat(values[17:20], dim=1)[part]
            image = image.index_copy(0, part, adjust_hsv(image[part], factor, phase))
    return image


_IDENTITY = np.array([1, 0, 0, 1], dtype=np.float32).reshape(4, 1)


def _chain(parameters: JitterParameters) -> tuple[npt.NDArray[np.float32], ...]:
    """Each image's operations as three linear steps around two conversions to HSV.

    Two linear operations in a row make one: clamp(a clamp(v, low, high) + b, 0, 1) is clamp(a v + b, a low + b,
    a high + b) with clamped bounds, as a >= 0.

    Returns:
        Scale, shift, lower and upper bound of the linear steps (3, 4, N); saturation factors (2, N), NaN in the second
        row where an image needs one conversion only; phases (2, 3, N) of the hue.
    """
    count = len(parameters.order)
    factors = np.stack([parameters.brightness - 1, parameters.contrast, parameters.saturation, parameters.hue])
    linear = np.tile(_IDENTITY, (3, 1, count))
    saturation = np.full((2, count), np.nan, dtype=np.float32)
    phases = np.tile(PHASES, (2, 1, count))
    images, conversions, converting = np.arange(count), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    for operation in parameters.order.T:
        in_hsv = operation >= _SATURATION
        conversions += in_hsv & ~converting
        converting = in_hsv
        scale = np.where(operation == _CONTRAST, factors[_CONTRAST], 1)
        shift = np.where(operation == _BRIGHTNESS, factors[_BRIGHTNESS], 0)
        before = linear[conversions, :, images]
        bounds = (before[:, 2:] * scale[:, None] + shift[:, None]).clip(0, 1)
        linear[conversions, :2, images] = before[:, :2] * scale[:, None]
        linear[conversions, 1, images] += shift
        linear[conversions, 2:, images] = bounds
        chosen, which = images[in_hsv], conversions[in_hsv] - 1
        known = np.nan_to_num(saturation[which, chosen], nan=1.0)
        factor = np.where(operation == _SATURATION, factors[_SATURATION], 1)[in_hsv]
        saturation[which, chosen] = known * factor
        turned = np.where(operation == _HUE, 6 * factors[_HUE], 0)[in_hsv]
        phases[which, :, chosen] += turned[:, None]
    return linear, saturation, phases


def hue_ramps(image: Tensor, phases: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Splits colours in HSV, so that an image is value - chroma * ramps.

    Args:
        image: RGB float (N, 3, H, W) in [0, 1].
        phases: `PHASES` plus the hue shift in sextants, (N, 3, 1, 1).

    Returns:
        Value and chroma (value times saturation), (N, 1, H, W); what each channel lacks of the value at the shifted
        hue, as a share of the chroma, (N, 3, H, W).
    """
    value = image.amax(dim=1, keepdim=True)
    chroma = value - image.amin(dim=1, keepdim=True)
    red, green, blue = image.chunk(3, dim=1)
    # Hue in sextants: the difference of the other two channels over the chroma, plus 0, 2 or 4 by the largest channel.
    not_red = torch.where(value == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4))
    sextant = torch.where(value == red, green - blue, not_red).div_(chroma.clamp(min=torch.finfo(image.dtype).tiny))
    k = (sextant + phases).remainder_(6)
    return value, chroma, torch.minimum(k, 4 - k, out=k).clamp_(0, 1)


def adjust_hsv(image: Tensor, saturation: Tensor, phases: Tensor) -> Tensor:
    """Multiplies the HSV saturation (clamped to 1) and shifts the hue.

    Args:
        image: RGB float (N, 3, H, W) in [0, 1].
        saturation: Factors, (N, 1, 1, 1).
        phases: As in `hue_ramps`.

    Returns:
        Float (N, 3, H, W) in [0, 1].
    """
    value, chroma, ramps = hue_ramps(image, phases)
    return value - torch.minimum(chroma * saturation, value) * ramps


class ColorJitter(Translation):
    """Random brightness, contrast, saturation and hue; factors and order are drawn for each image.

    Args:
        brightness: Half-width b of the additive shift, drawn from U(-b, b).
        contrast: Half-width c of the factor about zero, drawn from U(1 - c, 1 + c).
        saturation: Half-width s of the factor, drawn from U(1 - s, 1 + s).
        hue: Half-width h of the hue shift, drawn from U(-h, h).
        hue_unit: "turns" (+-0.25 is +-90 degrees; the likelier reading of DACS) or "radians" (+-14.3 degrees; DSP).
    """

    @ranged(brightness=NOT_NEGATIVE, contrast=SHARE, saturation=SHARE, hue=NOT_NEGATIVE)
    def __init__(
        self,
        brightness: float = 0.25,
        contrast: float = 0.25,
        saturation: float = 0.25,
        hue: float = 0.25,
        hue_unit: Literal["turns", "radians"] = "turns",
    ) -> None:
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue if hue_unit == "turns" else hue / (2 * math.pi)

    def draw(self, count: int, generator: torch.Generator) -> JitterParameters:
        """Draws the parameters of `count` images."""
        draws = torch.rand(8, count, generator=generator, dtype=torch.float32).numpy()
        spread = 2 * draws[:4] - 1
        return JitterParameters(
            1 + self.brightness * spread[0],
            1 + self.contrast * spread[1],
            1 + self.saturation * spread[2],
            self.hue * spread[3],
            draws[4:].argsort(axis=0).T,
        )

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """Jittered batch, float (N, 3, H, W) in [0, 1]."""
        return color_jitter(image, self.draw(image.shape[0], generator))


def blur_kernel_size(length: int) -> int:
    """Kernel size along an axis of `length` pixels: a tenth, rounded up, and made odd by taking one off."""
    size = math.ceil(0.1 * length)
    return size if size % 2 else size - 1


def gaussian_blur(image: Tensor, sigma: npt.NDArray[np.float32], max_sigma: float) -> Tensor:
    """Separable Gaussian blur with one sigma for each image and reflected borders.

    Args:
        image: float32 (N, C, H, W).
        sigma: Standard deviations in pixels, (N,); one of nearly 0 leaves its image as it is.
        max_sigma: Upper bound of sigma. Kernels reach `blur_kernel_size` pixels as in the published program, but not
            further than 5 sigma, where less than 1e-6 of the weight is left.

    Returns:
        Float (N, C, H, W).
    """
    reach = math.ceil(5 * max_sigma)
    radii = (min((blur_kernel_size(length) - 1) // 2, reach) for length in image.shape[2:])
    return separable_filter(image, *(gaussian_kernels(sigma, radius) for radius in radii))


def separable_filter(image: Tensor, down: npt.NDArray[np.float32], across: npt.NDArray[np.float32]) -> Tensor:
    """Filters each image with kernels of its own, with reflected borders (the edge pixel isn't doubled).

    Args:
        image: float32 (N, C, H, W), higher and wider than half a kernel.
        down: Weights from top to bottom, (N, odd number).
        across: Weights from left to right, (N, odd number).

    Returns:
        Float (N, C, H, W).
    """
    count, channels, height, width = image.shape
    rows, columns = down.shape[1] // 2, across.shape[1] // 2
    padded_size = (height + 2 * rows, width + 2 * columns)
    stacked = F.pad(image, (columns, columns, rows, rows), mode="reflect").view(1, count * channels, *padded_size)
    # oneDNN fills channels up to blocks of 16 unless they come last; other devices keep them first
    layout = torch.channels_last if image.device.type == "cpu" else torch.contiguous_format
    stacked = stacked.contiguous(memory_format=layout)
    with full_precision(image.device):
        for weights, shape in ((down, (-1, 1)), (across, (1, -1))):
            kernel = torch.from_numpy(weights.repeat(channels, axis=0).reshape(count * channels, 1, *shape))
            stacked = F.conv2d(stacked, kernel.to(image, non_blocking=True), groups=count * channels)
    return stacked.contiguous().view_as(image)


def gaussian_kernels(sigma: npt.NDArray[np.float32], radius: int) -> npt.NDArray[np.float32]:
    """Sampled Gaussians of sum 1, (N, 2 * radius + 1), of deviations (N,); below 1e-3 all weight is in the middle."""
    offset = np.arange(-radius, radius + 1, dtype=np.float32)
    kernel = np.exp(-0.5 * (offset / sigma.clip(min=1e-3)[:, None]) ** 2)
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True), dtype=np.float32)


class GaussianBlur(Translation):
    """Random Gaussian blur, sigma drawn for each image.

    Args:
        sigma: Range of the standard deviation in pixels; images that draw nearly 0 stay as they are.
    """

    @ranged(sigma=BLUR)
    def __init__(self, sigma: tuple[float, float] = (0.15, 1.15)) -> None:
        if not 0 <= sigma[0] <= sigma[1] or sigma[1] == 0:
            raise ValueError(f"GaussianBlur: found sigma={sigma}, expected 0 <= lower <= upper and upper > 0.")
        self.sigma = sigma

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """Blurred batch, float (N, 3, H, W) in [0, 1]."""
        low, high = self.sigma
        sigma = (low + (high - low) * torch.rand(image.shape[0], generator=generator, dtype=torch.float32)).numpy()
        return gaussian_blur(image, sigma, high)


class RandomApply(Translation):
    """Applies a translation with some probability.

    Args:
        translation: What to apply.
        p: Probability, 0-1.
        gate: Whether one draw decides for the whole "batch", or one for each "image" by itself; then the translation
            gets the chosen images alone, and the images of the other domain at their places.
    """

    @ranged(p=SHARE)
    def __init__(self, translation: Translation, p: float = 0.5, gate: Literal["batch", "image"] = "batch") -> None:
        self.translation = translation
        self.p = p
        self.gate = gate

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """The translated batch, or the given one."""
        count = image.shape[0] if self.gate == "image" else 1
        chosen = np.flatnonzero(torch.rand(count, generator=generator, dtype=torch.float32).numpy() < self.p)
        if not chosen.size:
            return image
        if self.gate == "batch" or chosen.size == count:
            return self.translation(image, generator, other)
        part = torch.from_numpy(chosen).to(image.device, non_blocking=True)
        others = None if other is None else other.index_select(0, part)
        translated = self.translation(image.index_select(0, part), generator, others)
        return image.index_copy(0, part, translated)


class RandomBlur(RandomApply):
    """Gaussian blur of some images, each chosen by itself.

    Args:
        sigma: As in `GaussianBlur`.
        p: Probability of an image to be blurred, 0-1.
    """

    @ranged(sigma=BLUR, p=SHARE)
    def __init__(self, sigma: tuple[float, float] = (0.0, 1.0), p: float = 0.5) -> None:
        super().__init__(GaussianBlur(sigma), p, gate="image")


class StrongAugmentation(Translation):
    """What DACS does to mixed images: colour jitter, then blur, each behind a gate shared by the batch.

    Args:
        brightness: As in `ColorJitter`.
        contrast: As in `ColorJitter`.
        saturation: As in `ColorJitter`.
        hue: As in `ColorJitter`.
        hue_unit: As in `ColorJitter`.
        jitter_p: Probability of jittering; 0 leaves it out.
        sigma: As in `GaussianBlur`.
        blur_p: Probability of blurring; 0 leaves it out.
    """

    @ranged(
        brightness=NOT_NEGATIVE,
        contrast=SHARE,
        saturation=SHARE,
        hue=NOT_NEGATIVE,
        jitter_p=SHARE,
        sigma=BLUR,
        blur_p=SHARE,
    )
    def __init__(
        self,
        brightness: float = 0.25,
        contrast: float = 0.25,
        saturation: float = 0.25,
        hue: float = 0.25,
        hue_unit: Literal["turns", "radians"] = "turns",
        jitter_p: float = 0.8,
        sigma: tuple[float, float] = (0.15, 1.15),
        blur_p: float = 0.5,
    ) -> None:
        self.jitter = RandomApply(ColorJitter(brightness, contrast, saturation, hue, hue_unit), jitter_p)
        self.blur = RandomApply(GaussianBlur(sigma), blur_p)

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """Augmented batch, float (N, 3, H, W) in [0, 1]."""
        return self.blur(self.jitter(image, generator), generator)
