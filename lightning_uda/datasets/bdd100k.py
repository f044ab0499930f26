"""BDD100K, semantic segmentation: 7,000 training, 1,000 validation and 2,000 test frames, 1280 x 720."""

from __future__ import annotations

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.storage import Part, StoredDataset, with_void
from lightning_uda.label_spaces import TRAIN_IDS

_SPLITS = {"train": 7_000, "val": 1_000, "test": 2_000}


class BDD100K(StoredDataset):
    """BDD100K's 10K images with semantic masks as distributed, in the present layout or that of 2018.

    Present: `images/10k/<split>/*.jpg` and `labels/sem_seg/masks/<split>/*.png`. 2018:
    `seg/images/<split>/*.jpg` and `seg/labels/<split>/*_train_id.png`. Some archives leave out `images/` or `seg/`.
    Masks hold Cityscapes' train ids, 255 = void.

    Args:
        root: Folder that holds these trees or a folder `bdd100k` with them, or the archives
            `bdd100k_images_10k.zip` (or `10k_images_train.zip`, `..._val.zip` and `..._test.zip`) and
            `bdd100k_sem_seg_labels_trainval.zip` (2018: `bdd100k_seg.zip`).
        split: "train", "val", "test", or a list file, absolute or relative to `root`, with one image name per line,
            of any of these.
        labelled: Whether labels are used; if not, they are never looked for.

    Raises:
        DatasetError: If images or labels are missing, or labels of the test split are requested.
    """

    class_ids = with_void(TRAIN_IDS, (255,))
    title = "BDD100K"
    home = "the BDD100K website (10K Images, Semantic Segmentation)"

    def __init__(self, root: str, split: str = "train", labelled: bool = True) -> None:
        if split == "test" and labelled:
            raise DatasetError(
                f"{root}: the labels of BDD100K's test split aren't public. Say `labelled: false`, or score on "
                "`split: val`."
            )
        folder = split if split in _SPLITS else f"(?:{'|'.join(_SPLITS)})"
        shown = split if split in _SPLITS else "train"
        images = Part(
            "images",
            "images",
            r"(?P<name>[^/]+)\.jpg",
            f"10k/{shown}/0004a4c0-d4dff0ad.jpg",
            f"bdd100k_images_10k.zip or 10k_images_{shown}.zip (2018: bdd100k_seg.zip)",
            folders=f"(?:10k/)?{folder}/",
            also=("10k",),
        )
        labels = Part(
            "labels",
            "labels",
            r"(?P<name>[^/]+?)(?:_train_id)?\.png",
            f"sem_seg/masks/{shown}/0004a4c0-d4dff0ad.png",
            "bdd100k_sem_seg_labels_trainval.zip (2018: bdd100k_seg.zip)",
            folders=f"(?:sem_seg/masks/)?{folder}/",
        )
        list_file = None if split in _SPLITS else split
        super().__init__(root, images, labels if labelled else None, list_file, _SPLITS.get(split))
