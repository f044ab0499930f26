"""Probabilities averaged at the network's resolution and enlarged bicubically (CBST's first program)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_uda.inference.policies import Inference, Scores
from lightning_uda.ranges import SHARE, SIDE, ranged
from lightning_uda.resize import Size


class StrideProbabilities(Inference):
    """Softmax at the network's resolution, mean with the mirrored image, bicubic enlargement: CBST's MXNet program.

    The image is padded at the bottom and on the right to a multiple of the output stride; the padding is cut off after
    enlarging. Bicubic is Pillow's (a = -0.5). It overshoots, so scores lie partly outside [0, 1]; where values matter,
    as for thresholds, `MultiScale(scales=[1.0])` stays within.

    Args:
        flip: Whether the mean with the mirrored image is taken.
        multiple: Sides are padded to a multiple of this: the output stride of the network.
        fill: Colour of the padding, RGB in [0, 1]; ImageNet's mean, which is 0 after normalisation.
    """

    gives_probabilities = True

    @ranged(multiple=SIDE, fill=SHARE)
    def __init__(
        self, flip: bool = True, multiple: int = 8, fill: tuple[float, float, float] = (0.485, 0.456, 0.406)
    ) -> None:
        self.flip = flip
        self.multiple = multiple
        self.fill = fill

    def scores(self, network: nn.Module, image: Tensor) -> Scores:
        """Enlarged mean probabilities, float32, about [0, 1]."""
        height, width = image.shape[-2:]
        padded = self._pad(image)
        probs = network(padded).float().softmax(dim=1)
        if self.flip:
            probs = (probs + network(padded.flip(-1)).float().softmax(dim=1).flip(-1)) / 2
        whole = bicubic(probs, (padded.shape[-2], padded.shape[-1]))[..., :height, :width]
        return lambda size: bicubic(whole, size)

    def _pad(self, image: Tensor) -> Tensor:
        height, width = (-(-side // self.multiple) * self.multiple for side in image.shape[-2:])
        color = torch.tensor(self.fill, dtype=image.dtype, device=image.device).view(1, 3, 1, 1)
        padded = color.expand(len(image), 3, height, width).clone()
        padded[..., : image.shape[-2], : image.shape[-1]] = image
        return padded


def bicubic(tensor: Tensor, size: Size) -> Tensor:
    """Pillow's bicubic resizing (a = -0.5) of float (N, C, h, w) to (N, C, *size)."""
    if tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    return F.interpolate(tensor, size=tuple(size), mode="bicubic", antialias=True)
