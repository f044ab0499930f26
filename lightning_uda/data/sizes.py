"""Sizes of the images that are stacked into batches, compared before training starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.data.transforms import EvalTransform, TrainTransform
from lightning_uda.resize import Size

Sizes = TypeVar("Sizes", Size, tuple[Size, Size])
_PROBES = ((16, 16), (24, 40))
_LISTED = 4


def crop_sizes(dataset: SegmentationDataset, transform: TrainTransform) -> list[Size]:
    """Different sizes (height, width) of training images after their transform, ascending.

    A transform that gives all images one size tells it by itself; otherwise the headers of all images are read.
    """

    def after(size: Size) -> Size:
        height, width, _ = transform(np.zeros((*size, 3), np.uint8), None, 0)[0].shape
        return height, width

    return _different(dataset, after)


def require_pairable(sizes: Mapping[str, list[Size]], batch_size: int, mixed_by: str | None) -> None:
    """Checks that the crops of each training set can be stacked, and those of different sets mixed.

    Args:
        sizes: The `crop_sizes` of the sets by name, "source" and "target".
        batch_size: Images of a set in a batch; a single one needs no other of its size.
        mixed_by: Name of the method if it mixes images of different streams, else `None`.

    Raises:
        DatasetError: If sizes differ; the message lists those of all sets concerned.
    """
    if batch_size > 1 and (uneven := [name for name in sizes if len(sizes[name]) > 1]):
        raise DatasetError(
            f"Images of different sizes can't share a batch of {batch_size}: found {_listed(sizes, uneven)} (height x "
            f"width); expected one size. Set `crop` or `resize` in {_transforms(uneven)}, or data.batch_size to 1."
        )
    if mixed_by is not None and len({size for found in sizes.values() for size in found}) > 1:
        raise DatasetError(
            f"{mixed_by} mixes images of its streams, so they must have one size: found {_listed(sizes, sizes)} "
            f"(height x width). Give the same `crop` to {_transforms(sizes)}."
        )


def require_stackable(name: str, dataset: SegmentationDataset, transform: EvalTransform, batch_size: int) -> None:
    """Checks that images and masks of an evaluation set can be stacked.

    Raises:
        DatasetError: If they differ in size and a batch holds more than one.
    """
    if batch_size == 1:
        return

    def after(size: Size) -> tuple[Size, Size]:
        image, mask = transform(np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8))
        assert mask is not None
        return (image.shape[0], image.shape[1]), (mask.shape[0], mask.shape[1])

    different = _different(dataset, after)
    if len(different) > 1:
        images, masks = (sorted(set(sizes)) for sizes in zip(*different, strict=True))
        raise DatasetError(
            f"data.eval_batch_size: found {batch_size}, but the {len(dataset)} images of data.{name} differ in size: "
            f"images {_sizes(images)}, masks {_sizes(masks)} (height x width) after data.eval_transform; "
            "expected one size. Set data.eval_batch_size to 1, or `resize` with `labels: resized` in the transform."
        )


def _different(dataset: SegmentationDataset, after: Callable[[Size], Sizes]) -> list[Sizes]:
    fixed = {after(size) for size in _PROBES}
    if len(fixed) == 1:
        return list(fixed)
    with ThreadPoolExecutor() as pool:
        return sorted({after(size) for size in set(pool.map(dataset.image_size, range(len(dataset))))})


def _listed(sizes: Mapping[str, list[Size]], names: Iterable[str]) -> str:
    return ", ".join(f"{_sizes(sizes[name])} in data.{name}" for name in names)


def _transforms(names: Iterable[str]) -> str:
    return " and ".join(f"data.{name}_transform" for name in names)


def _sizes(sizes: Sequence[Size]) -> str:
    shown = " and ".join(f"{height} x {width}" for height, width in sizes[:_LISTED])
    return shown if len(sizes) <= _LISTED else f"{shown} and {len(sizes) - _LISTED} more sizes"
