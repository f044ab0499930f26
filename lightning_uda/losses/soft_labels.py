"""Losses of softly pasted images, whose pixels have two labels (DSP, equations 6 and 7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.resize import upsample


class SoftSegmentationLoss:
    """(1 - beta) CE(z, y_s) + beta CE(z, y_ps) on mixed source images, Eq. (6) of DSP.

    Outside the paste both labels are the source's, so that this is the weighting of the equation. The paper writes
    sums; means are taken, as lambda_feature is tuned to them.

    Args:
        reduction: "valid": mean over the pixels that aren't void, each term over its own (the program of September
            2021). "all": mean over all pixels (that of July 2021).
    """

    def __init__(self, reduction: Literal["valid", "all"] = "valid") -> None:
        self.reduction = reduction

    def __call__(self, logits: Tensor, mask: Tensor, mixed_mask: Tensor, beta: float) -> Tensor:
        """The loss of a batch.

        Args:
            logits: Of the mixed source images, (N, C, h, w); upsampled first.
            mask: Labels of the source images, int64 (N, H, W).
            mixed_mask: Those with the pasted ones over them, int64 (N, H, W).
            beta: Opacity of the paste.

        Returns:
            Scalar.
        """
        log_probs = upsample(logits, (mask.shape[-2], mask.shape[-1])).log_softmax(dim=1)
        return (1 - beta) * self._mean(log_probs, mask) + beta * self._mean(log_probs, mixed_mask)

    def _mean(self, log_probs: Tensor, mask: Tensor) -> Tensor:
        total = F.nll_loss(log_probs, mask, ignore_index=IGNORE_INDEX, reduction="sum")
        count = mask.numel() if self.reduction == "all" else (mask != IGNORE_INDEX).sum().clamp(min=1)
        return total / count


class Consistency(ABC):
    """Loss of mixed target images on pasted labels and on pseudo-labels; mean over all pixels, void adds 0."""

    @abstractmethod
    def weights(self, pixel_weights: Tensor, paste_mask: Tensor, beta: float) -> tuple[Tensor, Tensor | None]:
        """Weights of both labels.

        Args:
            pixel_weights: Confidence weights lambda of the target images, float (N, H, W).
            paste_mask: bool (N, H, W).
            beta: Opacity of the paste.

        Returns:
            Weights of the mixed labels y_pt and of the pseudo-labels under them, float (N, H, W); `None` for a term
            that is left out.
        """

    def __call__(
        self,
        logits: Tensor,
        mixed_mask: Tensor,
        pseudo_labels: Tensor,
        pixel_weights: Tensor,
        paste_mask: Tensor,
        beta: float,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            logits: Of the mixed target images, (N, C, h, w); upsampled first.
            mixed_mask: y_pt, int64 (N, H, W): pasted labels on the paste, pseudo-labels elsewhere.
            pseudo_labels: int64 (N, H, W).
            pixel_weights: As in `weights`.
            paste_mask: As in `weights`.
            beta: As in `weights`.

        Returns:
            Scalar.
        """
        log_probs = upsample(logits, (mixed_mask.shape[-2], mixed_mask.shape[-1])).log_softmax(dim=1)
        mixed_weights, pseudo_weights = self.weights(pixel_weights, paste_mask, beta)
        loss = mixed_weights * _nll(log_probs, mixed_mask)
        return (loss if pseudo_weights is None else loss + pseudo_weights * _nll(log_probs, pseudo_labels)).mean()


class ConfidenceConsistency(Consistency):
    """beta M CE(y_pt) + (1 - beta M) lambda CE(pseudo): Eq. (7) with DACS's confidence weight; DACS's loss at 1."""

    def weights(self, pixel_weights: Tensor, paste_mask: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """See the class."""
        opacity = paste_mask * beta
        return opacity, (1 - opacity) * pixel_weights


class LiteralConsistency(Consistency):
    """beta M CE(y_pt) + (1 - beta M) CE(pseudo): Eq. (7) to the letter, without confidence."""

    def weights(self, pixel_weights: Tensor, paste_mask: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """See the class."""
        opacity = paste_mask * beta
        return opacity, 1 - opacity


class TwoTermConsistency(Consistency):
    """w (beta CE(y_pt) + (1 - beta) CE(pseudo)), w = 1 on the paste and lambda elsewhere: what the program meant."""

    def weights(self, pixel_weights: Tensor, paste_mask: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """See the class."""
        weights = pixel_weights.masked_fill(paste_mask, 1.0)
        return beta * weights, (1 - beta) * weights


class FirstTermConsistency(Consistency):
    """w beta CE(y_pt) alone: what both published programs compute, as their second term is lost."""

    def weights(self, pixel_weights: Tensor, paste_mask: Tensor, beta: float) -> tuple[Tensor, None]:
        """See the class."""
        return beta * pixel_weights.masked_fill(paste_mask, 1.0), None


def _nll(log_probs: Tensor, mask: Tensor) -> Tensor:
    return F.nll_loss(log_probs, mask, ignore_index=IGNORE_INDEX, reduction="none")
