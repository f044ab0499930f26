"""ACDC: fog, night, rain and snow, 1,600 training, 406 validation and 2,000 test frames, 1920 x 1080."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.storage import Part, StoredDataset, with_void
from lightning_uda.label_spaces import TRAIN_IDS

Condition = Literal["fog", "night", "rain", "snow"]

_CONDITIONS: tuple[Condition, ...] = ("fog", "night", "rain", "snow")
_SPLITS = {
    "train": dict.fromkeys(_CONDITIONS, 400),
    "val": dict.fromkeys(_CONDITIONS, 100) | {"night": 106},
    "test": dict.fromkeys(_CONDITIONS, 500),
}


class ACDC(StoredDataset):
    """ACDC (Sakaridis et al., ICCV 2021) as distributed: `rgb_anon/<condition>/<split>/<drive>/*_rgb_anon.png`.

    Labels are read from `gt/<condition>/<split>/<drive>/*_gt_labelTrainIds.png`: Cityscapes' train ids, 255 = void.

    Args:
        root: Folder that holds `rgb_anon` and `gt`, or `rgb_anon_trainvaltest.zip` and `gt_trainval.zip`.
        split: "train", "val", "test", or a list file, absolute or relative to `root`, with one image name
            ("GOPR0475_frame_000041") per line, of any of these.
        labelled: Whether labels are used; if not, they are never looked for.
        conditions: Which of "fog", "night", "rain" and "snow"; all of them by default.
        reference: Whether the reference frames of the split are read, taken at the same places in clear weather by day,
            in place of its own. They have no labels.

    Raises:
        DatasetError: If images or labels are missing, there is no such condition, or labels are requested that there
            are none of.
    """

    class_ids = with_void(TRAIN_IDS, (255,))
    title = "ACDC"
    home = "the ACDC website"

    def __init__(
        self,
        root: str,
        split: str = "train",
        labelled: bool = True,
        conditions: Sequence[Condition] = _CONDITIONS,
        reference: bool = False,
    ) -> None:
        if not conditions or (unknown := [name for name in conditions if name not in _CONDITIONS]):
            found = unknown if conditions else "none"
            raise DatasetError(f"{root}: conditions: found {found}; expected some of {', '.join(_CONDITIONS)}.")
        if labelled and (split == "test" or reference):
            what = "its reference frames have no labels" if reference else "the labels of its test split aren't public"
            raise DatasetError(f"{root}: ACDC: {what}. Say `labelled: false`, or score on `split: val`.")
        self.conditions, self.reference = tuple(conditions), reference
        kinds, ref = "|".join(self.conditions), "_ref" * reference
        splits = split if split in _SPLITS else "|".join(_SPLITS)
        folders, shown = f"(?:{kinds})/(?:{splits}){ref}/[^/]+/", split if split in _SPLITS else "train"
        example = f"{self.conditions[0]}/{shown}{ref}/GOPR0475/GOPR0475_frame_000041"
        images = Part(
            "images",
            "rgb_anon",
            rf"(?P<name>[^/]+)_rgb{ref}_anon\.png",
            f"{example}_rgb{ref}_anon.png",
            "rgb_anon_trainvaltest.zip",
            folders=folders,
        )
        labels = Part(
            "labels",
            "gt",
            r"(?P<name>[^/]+)_gt_labelTrainIds\.png",
            f"{example}_gt_labelTrainIds.png",
            "gt_trainval.zip",
            folders=folders,
        )
        whole = sum(_SPLITS[split][name] for name in self.conditions) if split in _SPLITS else None
        super().__init__(root, images, labels if labelled else None, None if whole else split, whole)
