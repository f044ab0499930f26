"""How well the classes of an image are predicted on the whole: the score by which CBST's authors chose 505 images."""

from __future__ import annotations

import torch
from torch import Tensor


def class_balance_score(confidence: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Mean over the predicted classes of an image of each class's mean confidence (as CBST's authors describe it).

    Args:
        confidence: float (N, H, W): the largest probability of each pixel.
        classes: Integer (N, H, W): its class, 0..C-1.
        num_classes: C.

    Returns:
        float64 (N,).
    """
    images = torch.arange(len(classes), device=classes.device).view(-1, 1, 1)
    groups = (classes.long() + num_classes * images).view(-1)
    values = torch.stack((confidence.double().view(-1), torch.ones_like(groups, dtype=torch.float64)), dim=1)
    sums = values.new_zeros(len(classes) * num_classes, 2).index_add_(0, groups, values)
    total, pixels = sums.view(len(classes), num_classes, 2).unbind(dim=2)
    return (total / pixels.clamp(min=1)).sum(dim=1) / (pixels > 0).sum(dim=1)
