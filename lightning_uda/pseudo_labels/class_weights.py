"""Weights of classes in a loss: by a teacher's confidence in each, or fixed (T2S-DA, Wang et al., 2023)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_uda.ranges import NOT_NEGATIVE, ranged

AbsentClasses = Literal["mean", "zero", "skip"]

STATIC_WEIGHTS = (
    *(0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)
"""Weights of Cityscapes' 19 classes that T2S-DA compares its own with; they sum to 19."""


class ClassWeighting(ABC):
    """How much each class counts in a loss."""

    def check(self, num_classes: int) -> None:  # noqa: B027  (most fit any number of classes)
        """Raises a ValueError if the weighting isn't one for that many classes; called before training."""

    @abstractmethod
    def __call__(self, labels: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
        """Weights of the classes.

        Args:
            labels: The teacher's labels of target images, of any integer type, (N, H, W).
            confidence: Its confidence in them, float (N, H, W) in [0, 1].
            num_classes: C.

        Returns:
            float32 (C,), of sum 1, without gradient.
        """


class DynamicClassWeights(ClassWeighting):
    """DRW: classes that the teacher is less sure of count more; see `dynamic_weights`.

    Args:
        beta: As in `dynamic_weights`.
        absent: As in `dynamic_weights`.

    Raises:
        ValueError: If `beta` is negative, or `absent` isn't one of its values.
    """

    @ranged(beta=NOT_NEGATIVE)
    def __init__(self, beta: float = 0.5, absent: AbsentClasses = "mean") -> None:
        if absent not in get_args(AbsentClasses):
            raise ValueError(
                f"DynamicClassWeights: found absent={absent!r}; expected one of {get_args(AbsentClasses)}."
            )
        self.beta = beta
        self.absent: AbsentClasses = absent

    def __call__(self, labels: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
        """Weights float32 (C,), of sum 1."""
        return dynamic_weights(labels, confidence, num_classes, self.beta, self.absent)


class FixedClassWeights(ClassWeighting):
    """The same weights in every step, divided by their sum (SRW).

    Args:
        weights: One for each class, at least 0, in the order of the label space.

    Raises:
        ValueError: If one is negative, or all are 0.
    """

    @ranged(weights=NOT_NEGATIVE)
    def __init__(self, weights: Sequence[float] = STATIC_WEIGHTS) -> None:
        if not sum(weights) > 0:
            raise ValueError(
                f"FixedClassWeights: found weights={list(weights)}; expected one of at least 0 for each class, and not "
                "all of them 0."
            )
        self.weights = [weight / sum(weights) for weight in weights]

    def check(self, num_classes: int) -> None:
        """Raises a ValueError if there isn't one weight for each class."""
        if len(self.weights) != num_classes:
            raise ValueError(
                f"FixedClassWeights: found {len(self.weights)} weights for {num_classes} classes; expected one for "
                "each, in the order of the label space."
            )

    def __call__(self, labels: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
        """Weights float32 (C,), of sum 1."""
        return torch.tensor(self.weights, dtype=torch.float32).to(confidence.device, non_blocking=True)


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Number of pixels of each class, and of all other values (void) after them.

    Args:
        labels: Of any integer type and shape; no negative values.
        num_classes: C.

    Returns:
        int64 (C + 1,).
    """
    return _class_sums(labels, torch.ones_like(labels, dtype=torch.int64), num_classes)


@torch.no_grad()
def dynamic_weights(
    labels: Tensor, confidence: Tensor, num_classes: int, beta: float = 0.5, absent: AbsentClasses = "mean"
) -> Tensor:
    """Weights w*(c) of classes by the teacher's mean confidence conf(c) in its pixels (T2S-DA, Eqs. 12 and 13).

    w(c) = [(1 - conf(c)) / max over c' of (1 - conf(c'))]^beta, and w*(c) is its share of the sum. The power is the
    paper's; its pseudo-code multiplies by beta, which would cancel.

    Args:
        labels: The teacher's labels, of any integer type, (N, H, W); values of C and above count for no class.
        confidence: Of each pixel, float (N, H, W) in [0, 1].
        num_classes: C.
        beta: Exponent; 0 weighs all classes alike.
        absent: What becomes of classes that are never predicted: the "mean" weight of the others; the confidence "zero"
            and with it the largest weight; or "skip", the weight 0.

    Returns:
        float32 (C,), of sum 1; all alike where every confidence is 1, or no class is predicted.
    """
    # Whole numbers add up to the same in any order, so that the sums are exact on every device.
    doubts = ((1 - confidence.float()).clamp(min=0) * 2**36).long()
    counts, sums = class_counts(labels, num_classes)[:-1], _class_sums(labels, doubts, num_classes)[:-1]
    doubt = sums.float() / 2**36 / counts.clamp(min=1)
    present = counts > 0
    if absent == "zero":
        doubt, present = doubt.masked_fill(~present, 1), torch.ones_like(present)
    largest = doubt.where(present, 0).amax()
    weights = torch.where(largest > 0, doubt / largest.clamp(min=torch.finfo(torch.float32).tiny), 1) ** beta
    weights = weights.where(present, 0)
    if absent == "mean":
        weights = weights.where(present, weights.sum() / present.sum().clamp(min=1))
    total = weights.sum()
    return torch.where(total > 0, weights / total.clamp(min=torch.finfo(torch.float32).tiny), 1 / num_classes)


def _class_sums(labels: Tensor, values: Tensor, num_classes: int) -> Tensor:
    """Sums of values int64 over the pixels of each class, and of all others after them; int64 (C + 1,)."""
    sums = torch.zeros(num_classes + 1, dtype=torch.int64, device=labels.device)
    return sums.scatter_add_(0, labels.long().clamp(max=num_classes).flatten(), values.flatten())
