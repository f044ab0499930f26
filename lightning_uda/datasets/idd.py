"""IDD, segmentation: frames from roads in India, in Cityscapes' classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.polygons import decode_shapes, draw_shapes, is_json
from lightning_uda.datasets.storage import Part, StoredDataset, StoredFile, with_void
from lightning_uda.label_spaces import IDD_NAMES, TRAIN_IDS

_SPLITS = ("train", "val", "test")


class IDD(StoredDataset):
    """The India Driving Dataset, segmentation parts I and II (Varma et al., WACV 2019), in their common layout.

    Images are `leftImg8bit/<split>/<drive>/*_leftImg8bit.png` (part I) or `.jpg` (part II), mostly 1920 x 1080. Labels
    are `gtFine/<split>/<drive>/*_gtFine_labelcsTrainIds.png`, which the data set's own tools make of its polygons
    (`--id-type csTrainId`): Cityscapes' train ids, 254 and 255 = void. Where there is none, the polygons as
    distributed, `*_gtFine_polygons.json`, are drawn. An image's name is "<drive>/<frame>", as frames of several drives
    have the same names.

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
            r"(?P<name>[^/]+/[^/]+)_gtFine_(?:labelcsTrainIds\.png|polygons\.json)",  # the first by name is taken: PNG
            f"{split}/0/frame0029_gtFine_polygons.json",
            "the same archives, unpacked",
            folders=f"{split}/",
            note="Label maps that the data set's tools make of the polygons (--id-type csTrainId) are read too.",
        )
        super().__init__(root, images, labels if labelled else None)

    def decode_label(self, data: bytes, where: str) -> npt.NDArray[np.uint8]:
        """Train ids, uint8 (H, W), of a PNG or of polygons, of which those without an area are left out."""
        if not is_json(data):
            return super().decode_label(data, where)
        size, shapes = decode_shapes(data, where, self.size_limit)
        areas = [shape for shape in shapes if len(shape.points) > 2]
        return draw_shapes(size, areas, IDD_NAMES, where, "IDD's table of labels")

    def check_label_kind(self, head: bytes, where: str) -> None:
        """Checks that a label is a single-channel PNG or a file of polygons."""
        if not is_json(head):
            super().check_label_kind(head, where)

    def label_size(self, file: StoredFile, head: bytes) -> tuple[int, int]:
        """Height and width of a label from its header, or those that its polygons are drawn for."""
        if not is_json(head):
            return super().label_size(file, head)
        return decode_shapes(self.storage.read(file, limit=self.size_limit), str(file), self.size_limit)[0]
