"""Style of other images by their low frequencies (FDA, Yang & Soatto, CVPR 2020), which T2S-DA translates by."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lightning_uda.precision import full_precision
from lightning_uda.ranges import BELOW_HALF, ranged
from lightning_uda.resize import resize_images, size_of
from lightning_uda.translation.photometric import Translation


class FourierTranslation(Translation):
    """Gives images the low-frequency amplitudes of others and keeps their phases.

    With F the two-dimensional Fourier transform of a channel and b = floor(min(H, W) beta), the amplitudes of F at
    frequencies |f_y| <= b and |f_x| <= b are exchanged: a window of (2 b + 1)^2, symmetric about the mean colour, which
    is exchanged too. Only these frequencies change, so only they are computed, by products with two thin matrices, and
    what changed is transformed back and added to the image.

    The result leaves [0, 1] in places, as the published program's does. Images must not be normalised before.

    Args:
        beta: Half the width of the window as a share of the shorter side, at least 0 and below 0.5. FDA's own settings
            are 0.01, 0.05 and 0.09.
        clip: Whether the result is clamped to [0, 1].

    Raises:
        ValueError: If `beta` is out of range.
    """

    @ranged(beta=BELOW_HALF)
    def __init__(self, beta: float = 0.01, clip: bool = False) -> None:
        self.beta = beta
        self.clip = clip

    def __call__(self, image: Tensor, generator: torch.Generator, other: Tensor | None = None) -> Tensor:
        """The images in the style of `other`; nothing is drawn.

        Args:
            image: RGB float (N, 3, H, W) in [0, 1].
            generator: Not used.
            other: Images whose style is taken, uint8 or float in [0, 1], (M, 3, any height and width). They are resized
                to those of `image`, and image i takes the style of number i modulo M.

        Returns:
            Float (N, 3, H, W).

        Raises:
            ValueError: If there are no other images.
        """
        if other is None or len(other) == 0:
            raise ValueError(
                "FourierTranslation: found no other images to take the style from; expected a batch of them. Choose a "
                "translation that needs none, such as ColorJitter, or a method that hands over target images."
            )
        size = size_of(image)
        style = resize_images(other.to(image.dtype) if other.is_floating_point() else other.to(image.dtype) / 255, size)
        translated = exchange_amplitudes(image, style, int(min(size) * self.beta))
        return translated.clamp_(0, 1) if self.clip else translated


def exchange_amplitudes(image: Tensor, style: Tensor, reach: int) -> Tensor:
    """Exchanges the amplitudes of an image's low frequencies for those of another.

    Args:
        image: float (N, C, H, W).
        style: float (M, C, H, W); image i takes the amplitudes of number i modulo M.
        reach: b, the highest frequency exchanged along either axis, below half of the shorter side.

    Returns:
        float (N, C, H, W).
    """
    height, width = size_of(image)
    down = _waves(height, reach, image.dtype, image.device)
    across = _waves(width, reach, image.dtype, image.device)[reach:]  # the other half is the conjugate of this one
    with full_precision(image.device):
        mine = _low_frequencies(image, down, across)
        amplitude, wanted = mine.abs(), _low_frequencies(style, down, across).abs()
        wanted = wanted[torch.arange(len(image), device=image.device) % len(style)]
        # The new coefficient is wanted * mine / amplitude; where the amplitude is 0, so is the phase.
        grown = mine * (wanted / amplitude.clamp(min=torch.finfo(image.dtype).tiny) - 1)
        change = torch.where(amplitude > 0, grown, wanted.to(mine.dtype))
        change[..., 1:] *= 2  # for the conjugate half
        rows = torch.view_as_real(down.conj().T @ change / (height * width)).flatten(-2).flatten(0, 2)
        columns = torch.view_as_real(across).transpose(1, 2).flatten(0, 1)  # Re(rows * conj(across)) as a real product
        return torch.addmm(image.reshape(-1, width), rows, columns).view(image.shape)


def _low_frequencies(image: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Coefficients (N, C, 2 b + 1, b + 1) at frequencies -b..b from top to bottom and 0..b from left to right."""
    parts = image @ torch.view_as_real(across).transpose(0, 1).flatten(1)  # real images: one product for both parts
    return down @ torch.view_as_complex(parts.reshape(*parts.shape[:-1], -1, 2))


@lru_cache(maxsize=16)
def _waves(length: int, reach: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(-2 pi i f n / length) of frequencies f = -reach..reach, complex (2 reach + 1, length)."""
    frequencies, places = (torch.arange(start, stop) for start, stop in ((-reach, reach + 1), (0, length)))
    turns = (frequencies[:, None] * places) % length  # exact, before it becomes an angle
    angle = turns.to(torch.float64) * (-2 * torch.pi / length)
    return torch.polar(torch.ones_like(angle), angle).to(device, dtype.to_complex())
