"""Scores of cross-validation: one confusion matrix per fold (NTHU: ten folds of ten images for each city)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_uda.metrics.segmentation import iou_per_class, mean_iou


@dataclass(frozen=True)
class FoldScores:
    """Scores of all folds together and of each fold; all in [0, 1], NaN where there is nothing to measure.

    Attributes:
        iou: IoU of each class in the sum of all folds' matrices, float64 (C,).
        miou: Its mean over the chosen classes. This is the score of the protocol: each image counts once.
        fold_mious: Mean IoU of each fold alone.
        mean_of_folds: Mean of `fold_mious`.
        mean_of_folds_absent_zero: The same if a class in neither labels nor predictions of a fold counts as 0 there,
            as in the programs of CBST's authors. In small folds it is much lower.
    """

    iou: Tensor
    miou: float
    fold_mious: tuple[float, ...]
    mean_of_folds: float
    mean_of_folds_absent_zero: float


def score_folds(
    confusions: Tensor, indices: Sequence[int] | None = None, folds: Sequence[int] | None = None
) -> FoldScores:
    """Scores folds by the sum of their confusion matrices, and by the mean of their scores.

    Args:
        confusions: (M, C, C) pixel counts; rows are ground truth. One matrix for each fold, or for each image.
        indices: Train ids to average over; all classes if `None`.
        folds: Number of the fold that each matrix belongs to; `None` if each is a fold of its own.

    Returns:
        The scores; folds in the order of their numbers.

    Raises:
        ValueError: If there is no matrix, or not one fold number for each.
    """
    if confusions.ndim != 3 or not len(confusions):
        raise ValueError(f"Found confusion matrices of shape {tuple(confusions.shape)}; expected (M, C, C), M >= 1.")
    numbers = list(range(len(confusions))) if folds is None else list(folds)
    if len(numbers) != len(confusions):
        raise ValueError(f"Found {len(numbers)} fold numbers for {len(confusions)} matrices; expected one for each.")
    by_fold = {number: torch.zeros_like(confusions[0]) for number in sorted(set(numbers))}
    for number, confusion in zip(numbers, confusions, strict=True):
        by_fold[number] = by_fold[number] + confusion
    fold_ious = [iou_per_class(confusion) for confusion in by_fold.values()]
    pooled = iou_per_class(confusions.sum(dim=0))
    mious = [float(mean_iou(iou, indices)) for iou in fold_ious]
    absent_zero = [float(mean_iou(iou, indices, absent=0.0)) for iou in fold_ious]
    return FoldScores(
        iou=pooled,
        miou=float(mean_iou(pooled, indices)),
        fold_mious=tuple(mious),
        mean_of_folds=sum(mious) / len(mious),
        mean_of_folds_absent_zero=sum(absent_zero) / len(absent_zero),
    )
