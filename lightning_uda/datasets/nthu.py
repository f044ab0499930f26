"""NTHU cross-city: street views of Rome, Rio, Tokyo and Taipei, 100 annotated and 3,200 other images of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.folds import keep_fold, require_fold
from lightning_uda.datasets.storage import Part, StoredDataset, with_void
from lightning_uda.label_spaces import NTHU_IDS
from lightning_uda.ranges import SEED, ranged

City = Literal["rome", "rio", "tokyo", "taipei"]

FOLDS = 10
"""Folds of a city's annotated images (CBST)."""

_ARCHIVE = "the archive of the dataset packed as .zip"


class NTHU(StoredDataset):
    """One city of the NTHU cross-city set: `<City>/Images/Test/*.png` and `<City>/Labels/Test/*_eval.png`.

    Labels hold Cityscapes' ids for 13 classes, the label space "nthu13". CBST's protocol has ten folds of ten images:
    a network adapts to the other ninety, without labels ("adapt"), and is scored on the ten ("score"), so that over
    all folds each image is scored once. The paper doesn't say which image is in which fold; here they are dealt out
    by a seeded shuffle of the sorted names.

    Args:
        root: Folder that holds `Rome`, `Rio`, `Tokyo` and `Taipei`, the one above, or a .zip archive of them.
        city: "rome", "rio", "tokyo" or "taipei".
        split: "all", the annotated images; "adapt" and "score", those outside and inside of `fold`; "train", the
            images of `Images/Train`, which have no labels; or a list file, absolute or relative to `root`, with one
            name of an annotated image per line.
        labelled: Whether labels are used; if not, they are never looked for.
        fold: Number of the fold that is held out, 0 to 9, for "adapt" and "score".
        fold_seed: Seed of the shuffle.

    Raises:
        DatasetError: If images or labels are missing, labels of "train" are requested, or `fold` doesn't fit `split`.
    """

    class_ids = with_void(NTHU_IDS, (*range(34), 255))
    title = "NTHU"
    home = "the project page of No More Discrimination (NTHU)"

    @ranged(fold_seed=SEED)
    def __init__(
        self,
        root: str,
        city: City,
        split: str = "all",
        labelled: bool = True,
        fold: int | None = None,
        fold_seed: int = 0,
    ) -> None:
        _require_fold(split, fold)
        if split == "train" and labelled:
            raise DatasetError(f"{root}: NTHU's `split: train` has no labels. Say `labelled: false`, or `split: all`.")
        folder, name = "Train" if split == "train" else "Test", city.capitalize()
        image_pattern, label_pattern = r"(?P<name>[^/]+)\.(?:png|jpg)", r"(?P<name>[^/]+)_eval\.png"
        images = Part("images", f"{name}/Images/{folder}", image_pattern, "pano_00002_2_180.png", _ARCHIVE)
        labels = Part("labels", f"{name}/Labels/{folder}", label_pattern, "pano_00002_2_180_eval.png", _ARCHIVE)
        full_size = {"all": 100, "train": 3_200}.get(split)
        list_file = None if split in ("all", "adapt", "score", "train") else split
        super().__init__(root, images, labels if labelled else None, list_file, full_size)
        if fold is not None:
            keep_fold(self, set(deal_folds(self._names, FOLDS, fold_seed)[fold]), inside=split == "score")


def deal_folds(names: Sequence[str], folds: int = FOLDS, seed: int = 0) -> list[list[str]]:
    """Deals names out to folds of nearly equal size; each name is in one fold.

    Args:
        names: Distinct names; their order doesn't matter.
        folds: Number of folds.
        seed: Seed of the shuffle.

    Returns:
        The folds, names sorted in each.
    """
    ordered = sorted(names)
    order = np.random.default_rng(seed).permutation(len(ordered))
    return [sorted(ordered[i] for i in part) for part in np.array_split(order, folds)]


def _require_fold(split: str, fold: int | None) -> None:
    if split in ("adapt", "score"):
        require_fold(fold, FOLDS, f"NTHU: found `split: {split}`")
    elif fold is not None:
        raise DatasetError(
            f"NTHU: found `fold: {fold}` with `split: {split}`; folds belong to `split: adapt` (the images outside of "
            "the fold) and `split: score` (those in it)."
        )
