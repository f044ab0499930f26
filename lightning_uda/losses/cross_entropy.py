"""Cross-entropy in the two reductions of DACS and its family (DACS, as published)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.resize import upsample


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over the valid pixels of the whole batch, L_s of DACS.

    Args:
        logits: (N, C, h, w); upsampled to the size of `mask` first.
        mask: int64 (N, H, W) of train ids; 255 is not counted.

    Returns:
        Scalar; 0 where no pixel is valid.
    """
    total = F.cross_entropy(
        upsample(logits, (mask.shape[-2], mask.shape[-1])), mask, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / (mask != IGNORE_INDEX).sum().clamp(min=1)


def weighted_cross_entropy(logits: Tensor, mask: Tensor, pixel_weights: Tensor) -> Tensor:
    """Weighted cross-entropy, mean over all pixels, L_m of DACS.

    Args:
        logits: (N, C, h, w); upsampled to the size of `mask` first.
        mask: int64 (N, H, W) of train ids; pixels of 255 add 0 but stay in the denominator.
        pixel_weights: float (N, H, W).

    Returns:
        Scalar.
    """
    per_pixel = F.cross_entropy(
        upsample(logits, (mask.shape[-2], mask.shape[-1])), mask, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return (per_pixel * pixel_weights).mean()
