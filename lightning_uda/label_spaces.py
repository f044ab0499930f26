"""Label spaces: class names, colours, evaluation subsets, and the raw id tables of the public datasets.

A dataset declares which class name each of its raw label ids stands for; a label space turns names into train ids.
So one reader serves 19, 16 and 13 classes alike, and no id table is written twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import yaml

from lightning_uda.config_files import read_config
from lightning_uda.ranges import BYTE, require

IGNORE_INDEX = 255
"""Train id of pixels that no loss and no metric counts."""

UNKNOWN_INDEX = 254
"""Entry of a lookup table for raw ids that a strict dataset doesn't list; never reaches a batch."""

UNQUOTED = ' YAML reads no, off, yes and on without quotes as False and True: write them as "no".'
"""What messages say of a class name that a file gave as True or False."""

Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LabelSpace:
    """The classes a network predicts.

    Attributes:
        name: How configs and reports call it.
        classes: Class names; the position of a name is its train id.
        palette: One RGB colour (0-255) for each class.
        subsets: Named groups of class names whose mean IoU is reported beside the mean over all classes.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks that names are unique, colours complete and subsets made of known classes."""
        if len(set(self.classes)) != len(self.classes) or not 2 <= len(self.classes) < UNKNOWN_INDEX:
            raise ValueError(
                f"Label space {self.name!r}: found {len(self.classes)} class names, {len(set(self.classes))} of them "
                f"distinct; expected 2 to {UNKNOWN_INDEX - 1} distinct names."
            )
        if wrong := [name for name in self.classes if not name.strip() or not name.isprintable()]:
            raise ValueError(
                f"Label space {self.name!r}: found the class names {wrong}; expected names of one line, not empty."
            )
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"Label space {self.name!r}: found {len(self.palette)} colours for {len(self.classes)} classes; "
                "give one [r, g, b] for each class."
            )
        require(BYTE, self.palette, f"Label space {self.name!r}: palette")
        for subset, names in self.subsets.items():
            if unknown := sorted(set(names) - set(self.classes)):
                raise ValueError(f"Label space {self.name!r}: subset {subset!r} names unknown classes {unknown}.")

    @property
    def num_classes(self) -> int:
        """Number of classes, the void label not counted."""
        return len(self.classes)

    def subset_indices(self, subset: str) -> list[int]:
        """Train ids of a named evaluation subset, ascending."""
        return sorted(self.classes.index(name) for name in self.subsets[subset])

    def lookup_table(self, class_ids: Mapping[int, str | None], unlisted: int = IGNORE_INDEX) -> Array:
        """Table from raw label id to train id.

        Args:
            class_ids: Class name of each raw id in 0-255; `None`, or a name outside this space, means void.
            unlisted: Train id of raw ids that `class_ids` doesn't hold.

        Returns:
            uint8 array of shape (256,); index = raw id, value = train id, 255 for void.
        """
        index = {name: i for i, name in enumerate(self.classes)}
        table = np.full(256, unlisted, dtype=np.uint8)
        for raw_id, name in class_ids.items():
            table[raw_id] = IGNORE_INDEX if name is None else index.get(name, IGNORE_INDEX)
        return table

    def raw_id_table(self, class_ids: Mapping[int, str | None], void: int = 0) -> Array:
        """Table from train id back to raw id, as a benchmark's server wants its label maps.

        Args:
            class_ids: Class name of each raw id, as a dataset declares it.
            void: Raw id of void pixels.

        Returns:
            uint8 (256,); index = train id, value = raw id (the lowest of a class), `void` from `num_classes` on.

        Raises:
            ValueError: If `class_ids` lacks a class of this space.
        """
        raw_ids = {name: raw_id for raw_id, name in sorted(class_ids.items(), reverse=True)}
        if missing := [name for name in self.classes if name not in raw_ids]:
            raise ValueError(f"Label space {self.name!r}: no raw id stands for {missing}. Add them to the id table.")
        table = np.full(256, void, dtype=np.uint8)
        table[: self.num_classes] = [raw_ids[name] for name in self.classes]
        return table

    def table_from(
        self, other: LabelSpace, merged: Mapping[str, str] | None = None, missing: int = IGNORE_INDEX
    ) -> Array:
        """Table from the train ids of another label space to those of this one, by class name.

        Args:
            other: The space of the ids at hand, such as that of a network.
            merged: Classes of `other` that count as a class of this space, by name.
            missing: What classes of `other` become that this space lacks. `num_classes`, an extra id, makes wrong
                predictions of them: a miss where the pixel has a class, no false positive of any scored class.

        Returns:
            uint8 (other.num_classes,).

        Raises:
            ValueError: If `merged` names an unknown class.
        """
        merged = merged or {}
        unknown = sorted({*set(merged) - set(other.classes), *set(merged.values()) - set(self.classes)})
        if unknown:
            raise ValueError(f"Merging {other.name!r} into {self.name!r}: found unknown classes {unknown}.")
        index = {name: i for i, name in enumerate(self.classes)}
        ids = [index.get(merged.get(name, name), missing) for name in other.classes]
        return np.array(ids, dtype=np.uint8)

    def as_yaml(self) -> str:
        """The content of a file that `get_label_space` reads as this space."""
        content = {
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(color) for color in self.palette],
            "subsets": {name: list(names) for name, names in self.subsets.items()},
        }
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)

    def colorize(self, mask: npt.NDArray[np.integer]) -> Array:
        """Colours a label map: integer (H, W) of train ids to uint8 (H, W, 3) RGB; void is black."""
        colors = np.zeros((256, 3), dtype=np.uint8)
        colors[: self.num_classes] = self.palette
        colored: Array = colors[mask]
        return colored


CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
_NOT_IN_SYNTHIA = ("terrain", "truck", "train")
_CLASSES_16 = tuple(name for name in CITYSCAPES_CLASSES if name not in _NOT_IN_SYNTHIA)
_CLASSES_13 = tuple(name for name in _CLASSES_16 if name not in ("wall", "fence", "pole"))

CITYSCAPES = LabelSpace("cityscapes", CITYSCAPES_CLASSES, _CITYSCAPES_PALETTE, {"16": _CLASSES_16, "13": _CLASSES_13})
CITYSCAPES16 = LabelSpace(
    "cityscapes16",
    _CLASSES_16,
    tuple(color for name, color in zip(CITYSCAPES_CLASSES, _CITYSCAPES_PALETTE, strict=True) if name in _CLASSES_16),
    {"13": _CLASSES_13},
)
NTHU13 = LabelSpace(
    "nthu13",
    _CLASSES_13,
    tuple(color for name, color in zip(CITYSCAPES_CLASSES, _CITYSCAPES_PALETTE, strict=True) if name in _CLASSES_13),
)
"""The classes of the NTHU cross-city labels; they are those of SYNTHIA's 13-class mean, too."""

CAMVID = LabelSpace(
    "camvid",
    ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
    (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip

LABEL_SPACES = {space.name: space for space in (CITYSCAPES, CITYSCAPES16, NTHU13, CAMVID)}

TRAIN_IDS: Mapping[int, str | None] = dict(enumerate(CITYSCAPES_CLASSES))
"""Label maps that hold the 19 Cityscapes train ids themselves."""

CITYSCAPES_IDS: Mapping[int, str | None] = dict(
    zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), CITYSCAPES_CLASSES, strict=True)
)
"""Raw ids of Cityscapes `labelIds` files and of GTA5 (DACS, as published)."""

SYNTHIA_IDS: Mapping[int, str | None] = {
    1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole", 8: "car",
    9: "traffic sign", 10: "person", 11: "bicycle", 12: "motorcycle", 15: "traffic light", 16: "terrain",
    17: "rider", 18: "truck", 19: "bus", 20: "train", 21: "wall",
}  # fmt: skip
"""Raw ids of SYNTHIA-RAND-CITYSCAPES; 22 (lane marking) and all else are void."""

IDD_NAMES: Mapping[str, int] = {
    **{name: i for i, name in enumerate(CITYSCAPES_CLASSES) if name != "terrain"},
    "non-drivable fallback": CITYSCAPES_CLASSES.index("terrain"),
    **dict.fromkeys(
        (
            "parking", "drivable fallback", "rail track", "animal", "autorickshaw", "caravan", "trailer",
            "vehicle fallback", "curb", "guard rail", "billboard", "polegroup", "obs-str-bar-fallback", "bridge",
            "tunnel", "fallback background", "unlabeled", "ego vehicle", "rectification border", "out of roi",
            "license plate",
        ),
        IGNORE_INDEX,
    ),
}  # fmt: skip
"""Cityscapes' train id of the names in IDD's polygons, as in the dataset's own table (`csTrainId`); 255 is void."""

NTHU_IDS: Mapping[int, str | None] = {i: name for i, name in CITYSCAPES_IDS.items() if name in NTHU13.classes}
"""Raw ids of the NTHU cross-city labels: those of Cityscapes, for 13 classes."""

NTHU_MERGED: Mapping[str, str] = {
    "wall": "building",
    "fence": "building",
    "pole": "building",
    "truck": "car",
    "terrain": "vegetation",
}
"""What a 19-class prediction counts as on NTHU (CBST); train stays without a class there."""

NTHU_MERGED_TRAIN_AS_BUS: Mapping[str, str] = {**NTHU_MERGED, "train": "bus"}
"""The other reading: the paper doesn't mention train."""

CAMVID_IDS: Mapping[int, str | None] = dict(enumerate(CAMVID.classes))
"""Raw ids of the 11-class CamVid labels."""


def get_label_space(name_or_path: str) -> LabelSpace:
    """Finds a label space by name, or reads one from a YAML file.

    Args:
        name_or_path: A key of `LABEL_SPACES`, or the path of a YAML file with `classes` (list of names) and,
            optionally, `name`, `palette` (list of [r, g, b]) and `subsets` (name to list of class names).

    Returns:
        The label space. Without a palette, colours are taken from evenly spaced hues.

    Raises:
        ValueError: If neither a built-in name nor a readable file, or if the file's content doesn't fit.
    """
    if name_or_path in LABEL_SPACES:
        return LABEL_SPACES[name_or_path]
    path = Path(name_or_path or "")  # null, too, comes here from a config
    if not path.is_file():
        raise ValueError(
            f"Unknown label space {name_or_path!r}: expected one of {sorted(LABEL_SPACES)} or the path of a YAML file "
            "with a `classes` list."
        )
    content = read_config(path)
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not _are_names(classes):
        raise ValueError(f"Label space file {path}: expected a mapping with a `classes` list of names.")
    if unknown := sorted(map(str, set(content) - {"name", "classes", "palette", "subsets"})):
        raise ValueError(f"Label space file {path}: unknown keys {unknown}; known are classes, name, palette, subsets.")
    if wrong := [name for name in classes if isinstance(name, bool)]:
        raise ValueError(f"Label space file {path}: found {wrong} among the class names; expected text.{UNQUOTED}")
    palette, subsets = content.get("palette") or _hues(len(classes)), content.get("subsets") or {}
    if not isinstance(palette, list) or not all(_is_color(color) for color in palette):
        raise ValueError(
            f"Label space file {path}: found palette {palette}; expected a list of [r, g, b], from 0 to 255."
        )
    if not isinstance(subsets, dict) or not all(_are_names(names) for names in subsets.values()):
        raise ValueError(f"Label space file {path}: found subsets {subsets}; expected lists of class names by name.")
    return LabelSpace(
        str(content.get("name", path.stem)),
        tuple(map(str, classes)),
        tuple((r, g, b) for r, g, b in palette),
        {str(name): tuple(map(str, names)) for name, names in subsets.items()},
    )


def _is_color(found: object) -> bool:
    return isinstance(found, list | tuple) and len(found) == 3 and all(isinstance(value, int) for value in found)


def _are_names(found: object) -> TypeGuard[list[str | int]]:
    return isinstance(found, list) and all(isinstance(name, str | int) for name in found)


def num_classes(name_or_path: str) -> int:
    """Number of classes of a label space; what the CLI links into the network."""
    return get_label_space(name_or_path).num_classes


def _hues(count: int) -> list[tuple[int, int, int]]:
    from colorsys import hsv_to_rgb

    rgb = [hsv_to_rgb(i / count, 0.65 + 0.35 * (i % 2), 0.95 - 0.25 * (i % 3) / 2) for i in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in rgb]
