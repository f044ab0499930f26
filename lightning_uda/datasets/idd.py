"""IDD, segmentation: frames from roads in India, in Cityscapes' classes."""

from __future__ import annotations

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.storage import Part, StoredDataset, with_void
from lightning_uda.label_spaces import TRAIN_IDS

_SPLITS = ("train", "val", "test")


class IDD(StoredDataset):
    """The India Driving Dataset, segmentation parts I and II (Varma et al., WACV 2019), in their common layout.

    Images are `leftImg8bit/<split>/<drive>/*_leftImg8bit.png` (part I) or `.jpg` (part II), mostly 1920 x 1080. Labels
    are `gtFine/<split>/<drive>/*_gtFine_labelcsTrainIds.png`, which the data set's own tools make of its polygons
    (`--id-type csTrainId`): Cityscapes' train ids, 254 and 255 = void. An image's name is "<drive>/<frame>", as frames
    of several drives have the same names.

    Args:
        root: Folder that holds `leftImg8bit` and `gtFine`.
        split: "train", "val" or "test".
        labelled: Whether labels are used; if not, they are never looked for.

    Raises:
        DatasetError: If images or labels are missing, there is no such split, or labels of the test split are
            requested.
    """

    class_ids = with_void(TRAIN_IDS, (254, 255))
    title = "IDD"
    home = "the IDD website"

    def __init__(self, root: str, split: str = "train", labelled: bool = True) -> None:
        if split not in _SPLITS:
            raise DatasetError(f"{root}: split: found {split!r}; expected one of {', '.join(_SPLITS)}.")
        if split == "test" and labelled:
            raise DatasetError(
                f"{root}: the labels of IDD's test split aren't public. Say `labelled: false`, or score on "
                "`split: val`."
            )
        images = Part(
            "images",
            "leftImg8bit",
            r"(?P<name>[^/]+/[^/]+)_leftImg8bit\.(?:png|jpg)",
            f"{split}/0/frame0029_leftImg8bit.jpg",
            "the archives of part I and II, unpacked",
            folders=f"{split}/",
        )
        labels = Part(
            "labels",
            "gtFine",
            r"(?P<name>[^/]+/[^/]+)_gtFine_labelcsTrainIds\.png",
            f"{split}/0/frame0029_gtFine_labelcsTrainIds.png",
            "the same archives, unpacked",
            folders=f"{split}/",
            note="Labels are made of the polygons by the data set's tools, with --id-type csTrainId.",
        )
        super().__init__(root, images, labels if labelled else None)
