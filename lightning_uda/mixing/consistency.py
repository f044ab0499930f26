"""How much both labels of softly pasted target images count (DSP, Eq. 7)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Consistency(ABC):
    """Weights of the pasted labels of mixed target images and of the pseudo-labels under them.

    The loss is the mean over all pixels of both cross-entropies, so weighted; void adds 0.
    """

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


class ConfidenceConsistency(Consistency):
    """beta M CE(y_pt) + (1 - beta M) lambda CE(pseudo): Eq. (7) with DACS's confidence weight; DACS's loss at 1."""

    def weights(self, pixel_weights: Tensor, paste_mask: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """See the class."""
        opacity = paste_mask.to(torch.float32) * beta
        return opacity, (1 - opacity) * pixel_weights


class LiteralConsistency(Consistency):
    """beta M CE(y_pt) + (1 - beta M) CE(pseudo): Eq. (7) to the letter, without confidence."""

    def weights(self, pixel_weights: Tensor, paste_mask: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """See the class."""
        opacity = paste_mask.to(torch.float32) * beta
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
