"""Intersection over union from one confusion matrix (DACS, as published).

Every figure the package reports (IoU of a class, mean over all classes, mean over a subset) derives from the same
matrix, summed over all images of an evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union of each class: M_cc / (row_c + column_c - M_cc).

    Args:
        confusion: (C, C) pixel counts; rows are ground truth, columns predictions. Void pixels are not in it.

    Returns:
        float64 (C,) in [0, 1]; NaN for a class in neither ground truth nor predictions.

    Raises:
        ValueError: If `confusion` is not square.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"Found a confusion matrix of shape {tuple(confusion.shape)}; expected (C, C).")
    confusion = confusion.to("cpu", torch.float64)
    intersection = confusion.diagonal()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - intersection
    return intersection / union


def mean_iou(iou: Tensor, indices: Sequence[int] | None = None, absent: float | None = None) -> Tensor:
    """Mean over the classes that occur.

    Args:
        iou: (C,) as `iou_per_class` gives it.
        indices: Train ids to average over; all classes if `None`.
        absent: What a class counts as that is in neither ground truth nor predictions: 0 in the programs of CBST's
            authors; `None` leaves it out of the mean.

    Returns:
        Scalar of `iou`'s dtype; NaN if none of the classes occurs and none is counted.
    """
    chosen = iou if indices is None else iou[list(indices)]
    return chosen.nanmean() if absent is None else chosen.nan_to_num(absent).mean()


def image_mious(confusions: Tensor) -> Tensor:
    """Mean IoU of each image over the classes that its labels have, to tell good images from bad ones.

    Classes that are only predicted don't count, as a few pixels of them would halve the score of a small image; they
    are misses of the classes they fell on. Nothing waits for the device.

    Args:
        confusions: (N, C, C) pixel counts of each image; rows are ground truth.

    Returns:
        float32 (N,) in [0, 1]; NaN for an image without labels.
    """
    hits, truth = confusions.diagonal(dim1=1, dim2=2), confusions.sum(dim=2)
    iou = hits.float() / (truth + confusions.sum(dim=1) - hits).float()
    return iou.masked_fill(truth == 0, torch.nan).nanmean(dim=1)


def merge_predictions(confusion: Tensor, merged: Mapping[int, int]) -> Tensor:
    """The matrix as if predictions of some classes had been predictions of others.

    This is how a network of 19 classes is scored on the 13 of NTHU: wall, fence and pole count as building, truck as
    car, terrain as vegetation. Predictions of a class that isn't merged and isn't among the classes averaged stay
    misses of the class they fell on.

    Args:
        confusion: (..., C, C); rows are ground truth.
        merged: Class predicted to class it counts as, both train ids.

    Returns:
        The same shape and type; columns of merged classes are 0.
    """
    targets = torch.tensor([merged.get(i, i) for i in range(confusion.shape[-1])], device=confusion.device)
    return torch.zeros_like(confusion).index_add_(-1, targets, confusion)
