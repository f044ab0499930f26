"""GTA5 (Playing for Data): 24,966 labelled frames of a game, 1914 x 1052."""

from __future__ import annotations

from lightning_uda.datasets.storage import Part, StoredDataset, with_void
from lightning_uda.label_spaces import CITYSCAPES_IDS

_IMAGES = Part("images", "images", r"(?P<name>[^/]+)\.png", "00001.png", "01_images.zip to 10_images.zip")
_LABELS = Part("labels", "labels", r"(?P<name>[^/]+)\.png", "00001.png", "01_labels.zip to 10_labels.zip")


class GTA5(StoredDataset):
    """GTA5 as distributed: `images/00001.png` and `labels/00001.png`, unpacked or in their twenty zip archives.

    Labels are palette PNG files whose stored numbers are Cityscapes' ids; nothing has to be converted. A few pairs
    differ in size between image and label, which `resize` in the transform evens out: both are brought to one size.

    Args:
        root: Folder that holds `images` and `labels`, or the archives `01_images.zip` ... `10_labels.zip`.
        split: List file with one image name ("00001") per line, absolute or relative to `root`; `None` takes all.
        labelled: Whether labels are used; if not, they are never looked for.

    Raises:
        DatasetError: If images or labels are missing; the message names them and the archives that hold them.
    """

    class_ids = with_void(CITYSCAPES_IDS, (*range(35), 255))
    sizes_may_differ = True
    title = "GTA5"
    home = "the project page of Playing for Data (TU Darmstadt)"

    def __init__(self, root: str, split: str | None = None, labelled: bool = True) -> None:
        super().__init__(root, _IMAGES, _LABELS if labelled else None, split, full_size=24_966)
