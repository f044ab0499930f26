"""Cityscapes, finely annotated: 2,975 training, 500 validation and 1,525 test frames, 2048 x 1024."""

from __future__ import annotations

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.storage import Part, StoredDataset, with_void
from lightning_uda.label_spaces import CITYSCAPES_IDS

_SPLITS = {"train": 2_975, "val": 500, "test": 1_525}


class Cityscapes(StoredDataset):
    """Cityscapes as distributed: `leftImg8bit/<split>/<city>/*_leftImg8bit.png`, `gtFine/.../*_gtFine_labelIds.png`.

    Labels are read from the `labelIds` files; no train id files have to be made. Of 35 ids, -1 (licence plate, 255
    in 8 bits) to 33, nineteen have a class.

    Args:
        root: Folder that holds `leftImg8bit` and `gtFine`, or `leftImg8bit_trainvaltest.zip` and
            `gtFine_trainvaltest.zip`.
        split: "train", "val", "test", or a list file, absolute or relative to `root`, with one image name
            ("aachen_000000_000019") per line, of any of these.
        labelled: Whether labels are used; if not, they are never looked for.

    Raises:
        DatasetError: If images or labels are missing, or labels of the test split are requested.
    """

    class_ids = with_void(CITYSCAPES_IDS, (*range(34), 255))
    title = "Cityscapes"
    home = "the Cityscapes website"

    def __init__(self, root: str, split: str = "train", labelled: bool = True) -> None:
        if split == "test" and labelled:
            raise DatasetError(
                f"{root}: the labels of Cityscapes' test split aren't public (its gtFine files are dummies). Say "
                "`labelled: false` and send predictions to the benchmark's server, or score on `split: val`."
            )
        super().__init__(
            root,
            _part("images", "leftImg8bit", split, "leftImg8bit", "leftImg8bit_trainvaltest.zip"),
            _part("labels", "gtFine", split, "gtFine_labelIds", "gtFine_trainvaltest.zip") if labelled else None,
            None if split in _SPLITS else split,
            _SPLITS.get(split),
        )


def _part(what: str, tree: str, split: str, suffix: str, archive: str) -> Part:
    """Files of a split, or of all if `split` isn't one's name."""
    return Part(
        what,
        tree,
        rf"(?P<name>[^/]+)_{suffix}\.png",
        f"{split if split in _SPLITS else 'train'}/<city>/<city>_000000_000019_{suffix}.png",
        archive,
        folders=f"{split}/[^/]+/" if split in _SPLITS else f"(?:{'|'.join(_SPLITS)})/[^/]+/",
    )
