"""Hard pseudo-labels of self-training from scores and thresholds (Eq. 5 and 8 of CBST)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX

_CHUNK = 1 << 20  # scores handled at once: temporaries of a few MB


def assign_pseudo_labels(scores: Tensor, thresholds: Tensor, strict: bool = False) -> Tensor:
    """Label argmax_c scores_c / thresholds_c where that maximum is at least 1, else void (Eq. 8; Eq. 5 with one k).

    The maximum is over all classes: a pixel whose best class misses its threshold can get the label of another class
    that reaches its own. Ties go to the lowest class. A score of 0 is never selected, nor is NaN.

    Args:
        scores: float32 (N, C, H, W), probabilities or their products with a spatial prior.
        thresholds: float32 (C,), exp(-k_c); +inf for classes that are never selected.
        strict: Whether the maximum has to exceed 1, as the paper writes it. That drops all pixels that tie with the
            threshold: of a saturated class, all.

    Returns:
        uint8 (N, H, W) of train ids; 255 is void.

    Raises:
        ValueError: If there is not one threshold for each class.
    """
    num, num_classes, height, width = scores.shape
    if thresholds.shape != (num_classes,):
        raise ValueError(
            f"Found thresholds {tuple(thresholds.shape)} for {num_classes} classes; expected one for each."
        )
    divisors = thresholds.clamp(min=torch.finfo(torch.float32).tiny).view(1, -1, 1, 1)
    precedence = torch.arange(num_classes, 0, -1, dtype=torch.uint8, device=scores.device).view(1, -1, 1, 1)
    labels = torch.empty(num, height, width, dtype=torch.uint8, device=scores.device)
    rows = max(1, _CHUNK // (num * num_classes * width))
    for top in range(0, height, rows):
        part, target = scores[:, :, top : top + rows], labels[:, top : top + rows]
        ratios = part / divisors
        best = ratios.amax(dim=1, keepdim=True)
        winners = num_classes - ((ratios == best) * precedence).amax(dim=1)  # much faster than an arg-max over dim 1
        best = best.squeeze(1)
        target.copy_(winners.where(best > 1 if strict else best >= 1, IGNORE_INDEX))
    return labels
