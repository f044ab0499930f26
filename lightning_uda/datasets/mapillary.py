"""Mapillary Vistas: 18,000 training and 2,000 validation street scenes of all sizes, in Cityscapes' classes."""

from __future__ import annotations

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.storage import Part, StoredDataset, with_void

_SPLITS = {"training": 18_000, "validation": 2_000, "testing": 5_000}
_CLASSES = {
    **dict.fromkeys((7, 8, 10, 13, 14, 23, 24, 41, 43), "road"),  # lanes, crosswalks, parking, markings, manholes
    **dict.fromkeys((2, 9, 11, 15), "sidewalk"),  # curbs and pedestrian areas too
    17: "building",
    6: "wall",
    3: "fence",
    **dict.fromkeys((45, 47), "pole"),
    48: "traffic light",
    50: "traffic sign",
    30: "vegetation",
    29: "terrain",
    27: "sky",
    19: "person",
    **dict.fromkeys((20, 21, 22), "rider"),
    55: "car",
    61: "truck",
    54: "bus",
    58: "train",
    57: "motorcycle",
    52: "bicycle",
}
"""Cityscapes' class of the ids of version 1.2; the other of its 66 are void."""


class MapillaryVistas(StoredDataset):
    """Mapillary Vistas with the labels of version 1.2 (Neuhold et al., ICCV 2017) as distributed.

    Images are `<split>/images/*.jpg`, labels `<split>/labels/*.png`, in archives of version 2.0
    `<split>/v1.2/labels/*.png`. Of its 66 classes those that are Cityscapes' or a part of one have that class; what
    Cityscapes leaves out or has no name for (bridges, water, back sides of signs, trailers, the own car) is void.

    Args:
        root: Folder that holds `training` and `validation`, or the archive.
        split: "training", "validation", "testing", or a list file, absolute or relative to `root`, with one image name
            per line, of any of these.
        labelled: Whether labels are used; if not, they are never looked for.

    Raises:
        DatasetError: If images or labels are missing, or labels of the test split are requested.
    """

    class_ids = with_void(_CLASSES, range(66))
    title = "Mapillary Vistas"
    home = "the Mapillary website"

    def __init__(self, root: str, split: str = "training", labelled: bool = True) -> None:
        if split == "testing" and labelled:
            raise DatasetError(
                f"{root}: the labels of Mapillary Vistas' test split aren't public. Say `labelled: false`, or score on "
                "`split: validation`."
            )
        shown = split if split in _SPLITS else "training"
        trees = (split,) if split in _SPLITS else tuple(_SPLITS)
        images = Part(
            "images",
            trees[0],
            r"(?P<name>[^/]+)\.jpg",
            "images/--BsPalvGIyvhASWS1Nn7Q.jpg",
            "an archive of Mapillary Vistas (mapillary-vistas-dataset_public_v1.2.zip or v2.0)",
            folders="images/",
            also=trees[1:],
        )
        labels = Part(
            "labels",
            trees[0],
            r"(?P<name>[^/]+)\.png",
            "labels/--BsPalvGIyvhASWS1Nn7Q.png (version 2.0: v1.2/labels/...)",
            "the same archive",
            folders=r"(?:v1\.2/)?labels/",
            also=trees[1:],
            note=f"A split such as {shown} is a folder of that name.",
        )
        list_file = None if split in _SPLITS else split
        super().__init__(root, images, labels if labelled else None, list_file, _SPLITS.get(split))
