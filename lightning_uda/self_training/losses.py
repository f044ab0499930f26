"""What self-training minimises, and which pixels it labels: CBST's hard labels and CRST's two regularised forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.losses.cross_entropy import cross_entropy
from lightning_uda.self_training.assignment import assign_pseudo_labels
from lightning_uda.self_training.regularization import lrent_labels, mrkld, one_hot_labels, soft_cross_entropy


class SelfTrainingLoss(ABC):
    """Loss on a batch of source and target images, and the pseudo-labels that go with it.

    Attributes:
        needs_probs: Whether `__call__` needs probabilities of the network that a round started from.
    """

    needs_probs: ClassVar[bool] = False

    def assign(self, scores: Tensor, thresholds: Tensor) -> Tensor:
        """Pseudo-labels, uint8 (N, H, W) with 255 for none, of scores (N, C, H, W) and thresholds exp(-k_c) (C,)."""
        return assign_pseudo_labels(scores, thresholds)

    @abstractmethod
    def __call__(
        self, logits: Tensor, mask: Tensor, is_target: Tensor, probs: Tensor | None, thresholds: Tensor
    ) -> Tensor:
        """Loss of a batch.

        Args:
            logits: (N, C, h, w).
            mask: int64 (N, H, W) of train ids and pseudo-labels; 255 is not counted.
            is_target: bool (N,).
            probs: Probabilities (N, C, H, W) of the round's starting network on this batch, if needed.
            thresholds: exp(-k_c) of the round, float32 (C,).

        Returns:
            Scalar; 0 where nothing is labelled.
        """


class HardLabels(SelfTrainingLoss):
    """Mean cross-entropy over all labelled pixels of both domains (CBST, step b).

    Args:
        strict: Whether scores must exceed their threshold, as the paper writes it; that leaves out all pixels that tie
            with it, of a saturated class every one.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict

    def assign(self, scores: Tensor, thresholds: Tensor) -> Tensor:
        """See `assign_pseudo_labels`."""
        return assign_pseudo_labels(scores, thresholds, self.strict)

    def __call__(
        self, logits: Tensor, mask: Tensor, is_target: Tensor, probs: Tensor | None, thresholds: Tensor
    ) -> Tensor:
        """Cross-entropy; domains aren't weighed against each other."""
        return cross_entropy(logits, mask)


class MRKLD(SelfTrainingLoss):
    """Model regularisation (CRST): labelled target pixels are kept from full confidence.

    Args:
        weight: alpha, factor of KL(uniform || p); applied once, while the published program applies it twice.
    """

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def __call__(
        self, logits: Tensor, mask: Tensor, is_target: Tensor, probs: Tensor | None, thresholds: Tensor
    ) -> Tensor:
        """Cross-entropy plus the weighted divergence."""
        labelled_target = (mask != IGNORE_INDEX) & is_target.view(-1, 1, 1)
        return cross_entropy(logits, mask) + self.weight * mrkld(logits, labelled_target)


class LRENT(SelfTrainingLoss):
    """Label regularisation (CRST): target labels are soft, y(c) ~ (p(c) / exp(-k_c))^(1/alpha).

    Which pixels can be labelled is decided with a round's labels; of a crop those with Z <= 1 don't count. Soft labels
    would take 159 MB per image of Cityscapes, so they are formed on the fly, of the probabilities that the network the
    round started from gives to the crop.

    Args:
        alpha: Weight of the labels' entropy; towards 0 the labels become hard.
    """

    needs_probs: ClassVar[bool] = True

    def __init__(self, alpha: float = 0.25) -> None:
        self.alpha = alpha

    def assign(self, scores: Tensor, thresholds: Tensor) -> Tensor:
        """Class of the largest soft label where labelling pays (Z > 1), else 255."""
        soft, kept = lrent_labels(scores, thresholds, self.alpha)
        return torch.where(kept, soft.argmax(dim=1), IGNORE_INDEX).byte()

    def __call__(
        self, logits: Tensor, mask: Tensor, is_target: Tensor, probs: Tensor | None, thresholds: Tensor
    ) -> Tensor:
        """Cross-entropy with the ground truth of source pixels and the soft labels of target pixels."""
        assert probs is not None
        labels = one_hot_labels(mask, logits.shape[1])
        soft, _ = lrent_labels(probs, thresholds, self.alpha)
        labelled_target = (mask != IGNORE_INDEX).unsqueeze(1) & is_target.view(-1, 1, 1, 1)
        return soft_cross_entropy(logits, torch.where(labelled_target, soft, labels))
