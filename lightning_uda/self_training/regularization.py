"""Confidence regularisers of self-training: MRKLD and LRENT (CRST, Zou et al., ICCV 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.resize import upsample


def mrkld(logits: Tensor, valid: Tensor) -> Tensor:
    """Model regularisation: mean of -(1/C) sum_c log p(c), which is KL(uniform || p) up to a constant.

    The loss of MRKLD is `cross_entropy + alpha * mrkld` with alpha = 0.1; the published program multiplies by alpha
    twice.

    Args:
        logits: (N, C, h, w); upsampled to the size of `valid` first.
        valid: bool (N, H, W): the pixels that count, which are the labelled ones of target images.

    Returns:
        Scalar; 0 where no pixel counts.
    """
    logits = upsample(logits, (valid.shape[-2], valid.shape[-1]))
    per_pixel = logits.logsumexp(dim=1) - logits.mean(dim=1)
    return torch.where(valid, per_pixel, 0).sum() / valid.sum().clamp(min=1)


def lrent_labels(scores: Tensor, thresholds: Tensor, alpha: float = 0.25) -> tuple[Tensor, Tensor]:
    """Label regularisation by entropy: the soft pseudo-labels y(c) = (p(c) / lambda_c)^(1/alpha) / Z.

    They minimise -sum_c y(c) log(p(c) / lambda_c) + alpha sum_c y(c) log y(c), at a cost of -alpha log Z. A pixel is
    kept where that is negative, Z > 1. With alpha -> 0 the labels become those of CBST.

    Args:
        scores: Probabilities, or their product with the spatial prior, float32 (N, C, H, W), 0 or more.
        thresholds: lambda_c = exp(-k_c), float32 (C,); infinite for classes that get no label.
        alpha: Weight of the entropy, more than 0.

    Returns:
        Soft labels, float32 (N, C, H, W), which sum to 1 over kept pixels and are 0 at the others; and the kept
        pixels, bool (N, H, W).
    """
    ratios = (scores.float().log() - thresholds.log().view(1, -1, 1, 1)) / alpha
    kept = ratios.logsumexp(dim=1) > 0
    return torch.where(kept.unsqueeze(1), ratios.softmax(dim=1), 0), kept


def one_hot_labels(mask: Tensor, num_classes: int) -> Tensor:
    """Hard labels as soft ones, for batches that hold both.

    Args:
        mask: int64 (N, H, W) of train ids and 255.
        num_classes: C.

    Returns:
        float32 (N, C, H, W); all 0 where the mask is 255.
    """
    classes = torch.arange(num_classes, device=mask.device).view(1, -1, 1, 1)
    return (mask.unsqueeze(1) == classes).float()


def soft_cross_entropy(logits: Tensor, soft_labels: Tensor) -> Tensor:
    """Mean of -sum_c y(c) log p(c) over the labelled pixels of the whole batch.

    Args:
        logits: (N, C, h, w); upsampled to the size of the labels first.
        soft_labels: float (N, C, H, W); pixels whose labels are all 0 aren't counted.

    Returns:
        Scalar; 0 where no pixel is labelled.
    """
    log_probs = F.log_softmax(upsample(logits, (soft_labels.shape[-2], soft_labels.shape[-1])), dim=1)
    return -(soft_labels * log_probs).sum() / soft_labels.any(dim=1).sum().clamp(min=1)
