"""Averages over sizes of the image and over its mirror image ("MST" of CBST)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_uda.inference.policies import Inference, Scores, WholeImage
from lightning_uda.ranges import SCALE, ranged
from lightning_uda.resize import Size, resize_images


class MultiScale(Inference):
    """Runs another policy on the image at several sizes, mirrored too, and averages the scores at the wanted size.

    Every size is made from the image as it was given, never from another resized one. Averaged are softmax
    probabilities after upsampling (CBST's paper leaves the domain open; this is the usual reading) or logits (the
    PyTorch program of CBST's authors, with scales 0.9, 1.0, 1.2).

    Args:
        base: Policy that each pass takes, such as `SlidingWindow`; it must give logits.
        scales: Factors on height and width of the image, or one of them; CBST's.
        flip: Whether each pass is repeated with the mirrored image.
        average: "probs" or "logits".

    Raises:
        ValueError: If there is no scale, one isn't above 0, or `base` can't be averaged.
    """

    @ranged(scales=SCALE)
    def __init__(
        self,
        base: Inference = WholeImage(),
        scales: Sequence[float] | float = (0.5, 0.75, 1.0),
        flip: bool = True,
        average: Literal["probs", "logits"] = "probs",
    ) -> None:
        scales = (scales,) if isinstance(scales, float) else tuple(scales)
        if not scales:
            raise ValueError("MultiScale: found no scales; expected one or more numbers, such as [0.5, 0.75, 1.0].")
        if base.gives_probabilities:
            raise ValueError(
                f"MultiScale: found base={type(base).__name__}, which gives probabilities; expected a policy that "
                "gives logits, such as WholeImage or SlidingWindow."
            )
        if isinstance(base, WholeImage) and base.resize is not None:
            raise ValueError(
                f"MultiScale: found a base that brings every image to {base.resize[0]} x {base.resize[1]}, whatever "
                "its scale; expected one without `resize`. Resize in `data.eval_transform`, or choose other scales."
            )
        self.base = base
        self.scales = scales
        self.flip = flip
        self.average = average
        self.gives_probabilities = average == "probs"

    def scores(self, network: nn.Module, image: Tensor) -> Scores:
        """Mean probabilities or logits of all passes."""
        passes = [
            (self.base.scores(network, scaled.flip(-1) if mirrored else scaled), mirrored)
            for scaled in (resize_images(image, _scaled(image, scale)) for scale in self.scales)
            for mirrored in ((False, True) if self.flip else (False,))
        ]

        def mean(size: Size) -> Tensor:
            total: Tensor | None = None
            for scores, mirrored in passes:
                part = scores(size)
                part = part.softmax(dim=1) if self.gives_probabilities else part
                part = part.flip(-1) if mirrored else part
                total = part if total is None else torch.add(total, part)
            assert total is not None
            return total / len(passes)

        return mean


def _scaled(image: Tensor, scale: float) -> Size:
    """Height and width of images (N, 3, H, W) at a scale, at least one pixel."""
    height, width = image.shape[-2:]
    return max(1, round(height * scale)), max(1, round(width * scale))
