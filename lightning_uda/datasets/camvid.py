"""CamVid: driving scenes of Cambridge, 480 x 360, 11 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightning_uda.datasets.folder import FolderDataset
from lightning_uda.datasets.folds import keep_fold, require_fold
from lightning_uda.label_spaces import CAMVID_IDS

FOLDS = 2
"""Folds of a list: its first and its second half."""

CAMVID_VOID_IDS = (11, 255)
"""Void in the widespread 11-class labels (11) and in copies that mark it 255."""


class CamVid(FolderDataset):
    """The 11-class CamVid as `images/*.jpg`, `labels/*.png` and `splits/*.txt`.

    Neighbouring frames are a second apart or less, and so nearly the same scene. Folds are therefore cut from the list,
    which has the order of the drive: fold 0 is its first half (the larger one of an odd number), fold 1 its second. A
    network adapts to one half and is scored on the other; they meet in one place only.

    Args:
        root: Folder that holds `images`, `labels` and `splits`.
        split: "train" or "val" (any list in `splits`), or the path of a list file, absolute or relative to `root`;
            `None` takes all images.
        labelled: Whether labels are used; `False` makes an unlabelled target set, whose labels are never opened.
        fold: Number of the fold that is held out, 0 or 1; `None` takes the whole list.
        held_out: Whether to take that fold alone, else the images outside of it.

    Raises:
        DatasetError: If files are missing, which the message names, or there is no such fold.
    """

    def __init__(
        self,
        root: str,
        split: str | None = None,
        labelled: bool = True,
        fold: int | None = None,
        held_out: bool = False,
    ) -> None:
        if fold is not None or held_out:
            fold = require_fold(fold, FOLDS, f"CamVid: found `held_out: {str(held_out).lower()}`")
        if split is not None and (Path(root).expanduser() / "splits" / f"{split}.txt").is_file():
            split = f"splits/{split}.txt"
        super().__init__(
            root,
            labels="labels" if labelled else None,
            split=split,
            class_map=dict(CAMVID_IDS),
            ignore_ids=CAMVID_VOID_IDS,
        )
        if fold is not None:
            half = np.array_split(self._names, FOLDS)[fold]
            keep_fold(self, set(half.tolist()), held_out)
