"""Pseudo-labels of a teacher and the pixel weights that its confidence gives (DACS, as published)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_uda.ranges import SHARE, ranged
from lightning_uda.ranks import mean_over_ranks
from lightning_uda.resize import upsample, upsampled_bands

_BAND = 1 << 18  # most logits that are taken at once on a CPU: one MB, which its cache holds

WeightScope = Literal["target_pixels", "whole_image"]


def pseudo_label(
    logits: Tensor,
    size: tuple[int, int],
    alignment: Callable[[Tensor], Tensor] | None = None,
    align_corners: bool = True,
) -> tuple[Tensor, Tensor]:
    """Most probable class of every pixel and its probability; logits are upsampled before the softmax.

    On a CPU this is done some rows after the other, as scores of a whole batch don't fit into its cache. On other
    devices, where each part would start kernels of its own, and where probabilities are aligned, it is done at once.
    Both agree up to rounding.

    Args:
        logits: Teacher logits (N, C, h, w).
        size: Height and width of the image.
        alignment: Applied to the probabilities (N, C, *size) before labels are taken, such as `DistributionAlignment`.
        align_corners: How logits are upsampled, as the network declares it.

    Returns:
        Labels, int64 (N, *size) in 0..C-1 (never void), and confidence, float32 (N, *size) in (0, 1].
    """
    elements = logits.shape[:2].numel() * size[0] * size[1]
    if alignment is None and logits.device.type == "cpu" and elements > _BAND:
        rows = max(1, _BAND * size[0] // elements)
        bands = [_most_probable_of(band) for band in upsampled_bands(logits, size, rows, align_corners)]
        labels, confidence = (torch.cat(parts, dim=1) for parts in zip(*bands, strict=True))
        return labels, confidence
    probs = upsample(logits, size, align_corners).softmax(dim=1)
    confidence, labels = (probs if alignment is None else alignment(probs)).max(dim=1)
    return labels, confidence


def _most_probable_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Class of the largest logit and its probability, of logits that a CPU's cache holds; they are overwritten.

    It is made of passes that are vectorised there, unlike `max` with indices.

    Args:
        logits: float32 (N, C, H, W).

    Returns:
        Labels, int64 (N, H, W), the lower one of equals, and confidence, float32 (N, H, W) in (0, 1].
    """
    below = logits.sub_(logits.amax(dim=1, keepdim=True))  # 0 at the largest, negative elsewhere
    count = logits.shape[1]
    shares = torch.arange(count, dtype=torch.float32, device=logits.device).view(-1, 1, 1) / count
    labels = below.sign().sub_(shares).amax(dim=1).mul_(-count).round_().long()  # the largest has -c / C, others <= -1
    return labels, below.exp_().sum(dim=1).reciprocal_()


def unpasted_mean(weights: Tensor, paste_mask: Tensor) -> Tensor:
    """Lambda as it is logged: mean weight of the pixels that come from the target image.

    Args:
        weights: Of mixed images, float (N, H, W).
        paste_mask: bool (N, H, W); true where the pixel comes from the source image.

    Returns:
        Scalar; 0 where every pixel is pasted.
    """
    unpasted = paste_mask.numel() - paste_mask.count_nonzero()
    return weights.float().masked_fill(paste_mask, 0).sum() / unpasted.clamp(min=1)


class PixelWeighting(ABC):
    """How much each pixel of a mixed image counts in its loss."""

    @abstractmethod
    def __call__(self, confidence: Tensor, paste_mask: Tensor) -> Tensor:
        """Weights of a mixed batch.

        Args:
            confidence: Teacher confidence on the clean target images, float (N, H, W).
            paste_mask: bool (N, H, W); true where the pixel comes from the source image.

        Returns:
            float (N, H, W).
        """


class ConfidenceWeighting(PixelWeighting):
    """Base of the weightings that count pixels whose confidence reaches a threshold.

    Args:
        threshold: Confidence that counts, 0-1; 0.968 in the published program, unnamed in the paper.
        scope: "target_pixels": pasted source pixels weigh 1 (the published program). "whole_image": they are scaled
            like all others (as the paper writes the loss); early in training that removes most ground truth.
    """

    @ranged(threshold=SHARE)
    def __init__(self, threshold: float = 0.968, scope: WeightScope = "target_pixels") -> None:
        self.threshold = threshold
        self.scope = scope

    @abstractmethod
    def share(self, confident: Tensor) -> Tensor:
        """Target weight, float32 broadcastable to (N, H, W), of the confident pixels, bool (N, H, W)."""

    def __call__(self, confidence: Tensor, paste_mask: Tensor) -> Tensor:
        """Weights float (N, H, W): the target weight, and 1 on pasted pixels if the scope says so."""
        share = self.share(confidence >= self.threshold)
        if self.scope == "whole_image":
            return share.expand_as(confidence)
        return torch.maximum(share, paste_mask)  # 1 on the mask, as `torch.where`, but several times as fast on a CPU


class BatchConfidence(ConfidenceWeighting):
    """lambda = share of confident pixels in the whole batch (the published program, "threshold_uniform").

    Of several processes each has the lambda of its own batch, unless the method has `global_means`.
    """

    def share(self, confident: Tensor) -> Tensor:
        """One weight for the batch, a scalar."""
        return mean_over_ranks(confident.count_nonzero().float() / confident.numel())


class ImageConfidence(ConfidenceWeighting):
    """lambda = share of confident pixels in each image (as the paper puts it)."""

    def share(self, confident: Tensor) -> Tensor:
        """One weight for each image, shape (N, 1, 1)."""
        return confident.float().mean(dim=(1, 2), keepdim=True)


class PixelConfidence(ConfidenceWeighting):
    """1 at confident pixels, 0 elsewhere (the published program's option "threshold")."""

    def share(self, confident: Tensor) -> Tensor:
        """One weight for each pixel, shape (N, H, W)."""
        return confident.float()


class UniformWeights(PixelWeighting):
    """All pixels weigh 1."""

    def __call__(self, confidence: Tensor, paste_mask: Tensor) -> Tensor:
        """Ones, float (N, H, W)."""
        return torch.ones_like(confidence)
