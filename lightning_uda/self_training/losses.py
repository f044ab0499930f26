"""What self-training teaches, and which pixels it labels: CBST's hard labels and CRST's two regularised forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.ranges import NOT_NEGATIVE, POSITIVE, ranged
from lightning_uda.self_training.assignment import assign_pseudo_labels
from lightning_uda.step import Labels, SoftLabels, Taught


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
        mask: (N, H, W) of train ids and 255, of any integer type.
        num_classes: C.

    Returns:
        float32 (N, C, H, W); all 0 where the mask is 255.
    """
    classes = torch.arange(num_classes, device=mask.device).view(1, -1, 1, 1)
    return (mask.unsqueeze(1) == classes).float()


class SelfTrainingLoss(ABC):
    """What is taught on a batch of source and target images, and the pseudo-labels that go with it.

    Attributes:
        needs_probs: Whether `labels` needs probabilities of the network that a round started from.
    """

    needs_probs: ClassVar[bool] = False

    def assign(self, scores: Tensor, thresholds: Tensor) -> Tensor:
        """Pseudo-labels, uint8 (N, H, W) with 255 for none, of scores (N, C, H, W) and thresholds exp(-k_c) (C,)."""
        return assign_pseudo_labels(scores, thresholds)

    @abstractmethod
    def labels(self, mask: Tensor, is_target: Tensor, thresholds: Tensor, probs: Tensor | None) -> Sequence[Taught]:
        """What a batch is taught.

        Args:
            mask: uint8 (N, H, W) of train ids and pseudo-labels; 255 is not counted.
            is_target: bool (N,).
            thresholds: exp(-k_c) of the round, float32 (C,).
            probs: Probabilities (N, C, H, W) of the round's starting network on this batch, if needed.
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

    def labels(self, mask: Tensor, is_target: Tensor, thresholds: Tensor, probs: Tensor | None) -> Sequence[Taught]:
        """The labels as they are; domains aren't weighed against each other."""
        return [Labels(mask)]


class MRKLD(SelfTrainingLoss):
    """Model regularisation (CRST): labelled target pixels are kept from full confidence.

    To the cross-entropy it adds alpha times the mean of -(1/C) sum_c log p(c) over the labelled target pixels, which is
    KL(uniform || p) up to a constant: the cross-entropy with uniform labels.

    Args:
        weight: alpha; applied once, while the published program applies it twice.
    """

    @ranged(weight=NOT_NEGATIVE)
    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def labels(self, mask: Tensor, is_target: Tensor, thresholds: Tensor, probs: Tensor | None) -> Sequence[Taught]:
        """The labels, and uniform ones on labelled target pixels."""
        labelled_target = (mask != IGNORE_INDEX) & is_target.view(-1, 1, 1)
        uniform = torch.full((1, len(thresholds), 1, 1), 1 / len(thresholds), dtype=torch.float32, device=mask.device)
        return [Labels(mask), SoftLabels(uniform, labelled_target, self.weight)]


class LRENT(SelfTrainingLoss):
    """Label regularisation (CRST): target labels are soft, y(c) ~ (p(c) / exp(-k_c))^(1/alpha).

    Which pixels can be labelled is decided with a round's labels; of a crop those with Z <= 1 don't count. Soft labels
    would take 159 MB per image of Cityscapes, so they are formed on the fly, of the probabilities that the network the
    round started from gives to the crop.

    Args:
        alpha: Weight of the labels' entropy; towards 0 the labels become hard.
    """

    needs_probs: ClassVar[bool] = True

    @ranged(alpha=POSITIVE)
    def __init__(self, alpha: float = 0.25) -> None:
        self.alpha = alpha

    def assign(self, scores: Tensor, thresholds: Tensor) -> Tensor:
        """Class of the largest soft label where labelling pays (Z > 1), else 255."""
        soft, kept = lrent_labels(scores, thresholds, self.alpha)
        return torch.where(kept, soft.argmax(dim=1), IGNORE_INDEX).byte()

    def labels(self, mask: Tensor, is_target: Tensor, thresholds: Tensor, probs: Tensor | None) -> Sequence[Taught]:
        """The ground truth of source pixels and the soft labels of target pixels."""
        assert probs is not None
        soft, _ = lrent_labels(probs, thresholds, self.alpha)
        labelled_target = (mask != IGNORE_INDEX).unsqueeze(1) & is_target.view(-1, 1, 1, 1)
        return [SoftLabels(torch.where(labelled_target, soft, one_hot_labels(mask, len(thresholds))))]
