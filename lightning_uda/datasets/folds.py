"""Sets that are cut into folds, of which a run holds one out."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Protocol

from lightning_uda.data.dataset import DatasetError


class Listed(Protocol):
    """What the readers of files keep of each image, in the order of the set."""

    has_labels: bool
    _names: list[str]
    _images: list[Any]
    _labels: list[Any]


def require_fold(fold: int | None, folds: int, found: str) -> int:
    """The number of a fold, if there is such a fold.

    Args:
        fold: The number given.
        folds: Number of folds.
        found: The setting that needs it, for the message: "NTHU: found `split: score`".

    Raises:
        DatasetError: If there isn't.
    """
    if fold is None or not 0 <= fold < folds:
        raise DatasetError(f"{found} with `fold: {fold}`; expected a fold from 0 to {folds - 1}.")
    return fold


def keep_fold(dataset: Listed, fold: Container[str], inside: bool) -> None:
    """Leaves a dataset the images of a fold, or all others, in their order.

    Args:
        dataset: A dataset that has listed its files.
        fold: Names of the images in the fold.
        inside: Whether those are kept, else the others.
    """
    kept = [index for index, name in enumerate(dataset._names) if (name in fold) == inside]
    dataset._names = [dataset._names[index] for index in kept]
    dataset._images = [dataset._images[index] for index in kept]
    dataset._labels = [dataset._labels[index] for index in kept] if dataset.has_labels else []
