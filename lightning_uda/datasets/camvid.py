"""CamVid: driving scenes of Cambridge, 480 x 360, 11 classes."""

from __future__ import annotations

from pathlib import Path

from lightning_uda.datasets.folder import FolderDataset
from lightning_uda.label_spaces import CAMVID_IDS

CAMVID_VOID_IDS = (11, 255)
"""Void in the widespread 11-class labels (11) and in copies that mark it 255."""


class CamVid(FolderDataset):
    """The 11-class CamVid as `images/*.jpg`, `labels/*.png` and `splits/*.txt`.

    Args:
        root: Folder that holds `images`, `labels` and `splits`.
        split: "train" or "val" (any list in `splits`), or the path of a list file, absolute or relative to `root`;
            `None` takes all images.
        labelled: Whether labels are used; `False` makes an unlabelled target set, whose labels are never opened.

    Raises:
        DatasetError: If files are missing; the message names them.
    """

    def __init__(self, root: str, split: str | None = None, labelled: bool = True) -> None:
        if split is not None and (Path(root).expanduser() / "splits" / f"{split}.txt").is_file():
            split = f"splits/{split}.txt"
        super().__init__(
            root,
            labels="labels" if labelled else None,
            split=split,
            class_map=dict(CAMVID_IDS),
            ignore_ids=CAMVID_VOID_IDS,
        )
