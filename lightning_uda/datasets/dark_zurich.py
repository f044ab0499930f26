"""Dark Zurich: 2,416 night, 2,920 twilight and 3,041 day frames to adapt to, 50 and 151 night frames to score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.storage import Part, StoredDataset, with_void
from lightning_uda.label_spaces import TRAIN_IDS

Time = Literal["night", "twilight", "day"]

_TIMES = {"night": 2_416, "twilight": 2_920, "day": 3_041}
_SPLITS = {"train": None, "val": 50, "test": 151}


class DarkZurich(StoredDataset):
    """Dark Zurich (Sakaridis et al., ICCV 2019) as distributed, 1920 x 1080.

    Images are `rgb_anon/<split>/<time>/<drive>/*_rgb_anon.png`, labels, of the validation frames alone,
    `gt/val/night/<drive>/*_gt_labelTrainIds.png`: Cityscapes' train ids, 255 = void. The reference frames by day
    (`val_ref`, `test_ref`) are left out.

    Args:
        root: Folder that holds `rgb_anon` and `gt`, or the archives `Dark_Zurich_train_anon.zip`,
            `Dark_Zurich_val_anon.zip` and `Dark_Zurich_test_anon_withoutGt.zip`.
        split: "train" (no labels), "val", "test" (no labels), or a list file, absolute or relative to `root`, with one
            image name per line, of any of these.
        labelled: Whether labels are used; if not, they are never looked for.
        times: Which of "night", "twilight" and "day"; "val" and "test" are frames by night.

    Raises:
        DatasetError: If images or labels are missing, there is no such time, or labels are requested that there are
            none of.
    """

    class_ids = with_void(TRAIN_IDS, (255,))
    title = "Dark Zurich"
    home = "the Dark Zurich website"

    def __init__(
        self, root: str, split: str = "val", labelled: bool = True, times: Sequence[Time] = ("night",)
    ) -> None:
        if not times or (unknown := [name for name in times if name not in _TIMES]):
            found = unknown if times else "none"
            raise DatasetError(f"{root}: times: found {found}; expected some of {', '.join(_TIMES)}.")
        if labelled and split in ("train", "test"):
            raise DatasetError(
                f"{root}: Dark Zurich's {split} split has no public labels. Say `labelled: false`, or score on "
                "`split: val`."
            )
        self.times = tuple(times)
        splits, kinds = split if split in _SPLITS else "|".join(_SPLITS), "|".join(self.times)
        folders, shown = f"(?:{splits})/(?:{kinds})/[^/]+/", split if split in _SPLITS else "val"
        example = f"{shown}/{self.times[0]}/GOPR0356/GOPR0356_frame_000321"
        images = Part(
            "images",
            "rgb_anon",
            r"(?P<name>[^/]+)_rgb_anon\.png",
            f"{example}_rgb_anon.png",
            "Dark_Zurich_train_anon.zip, Dark_Zurich_val_anon.zip or Dark_Zurich_test_anon_withoutGt.zip",
            folders=folders,
        )
        labels = Part(
            "labels",
            "gt",
            r"(?P<name>[^/]+)_gt_labelTrainIds\.png",
            f"{example}_gt_labelTrainIds.png",
            "Dark_Zurich_val_anon.zip",
            folders=folders,
        )
        whole = sum(_TIMES[name] for name in self.times) if split == "train" else _SPLITS.get(split)
        super().__init__(root, images, labels if labelled else None, None if split in _SPLITS else split, whole)
