"""Folders of images whose labels are polygons in JSON files, as Cityscapes' tools and labelme write them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from lightning_uda.data.dataset import DatasetError, SizeLimit, UnreadableFileError
from lightning_uda.data.decoding import read_file
from lightning_uda.datasets.folder import FolderDataset
from lightning_uda.errors import did_you_mean
from lightning_uda.label_spaces import IGNORE_INDEX

Array = npt.NDArray[np.uint8]
Point = tuple[float, float]

_GROUP = "group"


class Shape(NamedTuple):
    """An area of one label.

    Attributes:
        label: Its name in the file.
        kind: "polygon", "rectangle" (two corners) or "circle" (centre and a point of the rim).
        points: (x, y) in pixels.
    """

    label: str
    kind: str
    points: list[Point]


class PolygonDataset(FolderDataset):
    """Images of a folder, with polygons of the same relative names in JSON files, in another folder or beside them.

    Two styles are read: Cityscapes' (`imgHeight`, `imgWidth`, `objects` with `label` and `polygon`; deleted ones are
    left out, and "cargroup" counts as "car") and labelme's (`imageHeight`, `imageWidth`, `shapes` with `label`,
    `points` and `shape_type`: polygon, rectangle or circle). Areas are drawn in the order of the file, later ones over
    earlier ones, as the Cityscapes tools draw them. With `data.cache_dir` and
    `resize` they are drawn once.

    Args:
        root: Folder of the dataset.
        images: Image folder, absolute or relative to `root`.
        labels: Folder of the JSON files, absolute or relative to `root`; it may be the image folder.
        split: Text file, absolute or relative to `root`, with one image name per line; `None` takes all images.
        class_map: Class name of each label in the files, `None` for void; other labels are errors. Without a map each
            label is the class of its name, for which all files are read once.
        image_suffix: End of image file names that doesn't belong to the name, such as "_leftImg8bit".
        label_suffix: The same of JSON file names, such as "_gtFine_polygons".
        unpaired: As in `FolderDataset`.
        image_bits: As in `FolderDataset`.
        unlabelled: Class of what no area covers, such as "background"; `None` makes it void.

    Raises:
        DatasetError: As `FolderDataset`; if a JSON file is of neither style while its labels are looked for, or there
            are more than 255 labels.
    """

    label_extensions = (".json",)

    def __init__(
        self,
        root: str,
        images: str = "images",
        labels: str = "labels",
        split: str | None = None,
        class_map: dict[str, str | None] | None = None,
        image_suffix: str = "",
        label_suffix: str = "",
        unpaired: Literal["refuse", "skip"] = "refuse",
        image_bits: int = 16,
        unlabelled: str | None = None,
    ) -> None:
        self.unlabelled = unlabelled
        self._class_of_label = class_map
        super().__init__(
            root,
            images,
            labels,
            split,
            image_suffix=image_suffix,
            label_suffix=label_suffix,
            unpaired=unpaired,
            image_bits=image_bits,
        )

    def find_class_ids(
        self, class_map: Mapping[int, str | None] | str | None, ignore_ids: Sequence[int]
    ) -> dict[int, str | None]:
        """Raw ids, the numbers of the labels in the order of the map or else of the alphabet; 255 is the rest."""
        classes = self._class_of_label
        if classes is None:
            with ThreadPoolExecutor() as pool:
                names = pool.map(
                    lambda path: {shape.label for shape in self._shapes(path)[1]}, filter(None, self._labels)
                )
                found = sorted(set().union(*names))
            classes = {name: name for name in found if _single(name) == name or _single(name) not in found}
        if not 0 < len(classes) <= IGNORE_INDEX:
            raise DatasetError(f"{self.root}: found {len(classes)} labels; expected 1 to {IGNORE_INDEX}.")
        self.labels_by_id = tuple(classes)  # counts for the key of caches
        self._id_of = {name: number for number, name in enumerate(classes)}
        return {**dict(enumerate(classes.values())), IGNORE_INDEX: self.unlabelled}

    def read_label(self, path: Path) -> Array:
        """Draws the areas of a file, uint8 (H, W) of raw ids.

        Raises:
            DatasetError: If the file can't be read, or holds a label that isn't known or a shape without an area.
        """
        size, shapes = self._shapes(path)
        return draw_shapes(size, shapes, self._id_of, str(path))

    def _shapes(self, path: Path) -> tuple[tuple[int, int], list[Shape]]:
        """Height and width, and the shapes of a file."""
        return decode_shapes(read_file(path, self.size_limit), str(path), self.size_limit)


def is_json(head: bytes) -> bool:
    """Whether a label file that begins so is one of polygons rather than a label map."""
    return head.lstrip().startswith(b"{")


def decode_shapes(data: bytes, where: str, limit: SizeLimit) -> tuple[tuple[int, int], list[Shape]]:
    """The areas in a JSON file of either style.

    Args:
        data: The file.
        where: Its path, for messages.
        limit: How large the image may be.

    Returns:
        Height and width of the image, and the areas in the order of the file.

    Raises:
        DatasetError: If the file isn't JSON, is of neither style, or the image is too large.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise UnreadableFileError(f"{where}: can't be read as JSON ({error}). Export it again.") from error
    try:
        size, shapes = _parsed(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{where}: found no polygons of Cityscapes' style (imgHeight, imgWidth, objects: label, polygon) or "
            f"labelme's (imageHeight, imageWidth, shapes: label, points); {type(error).__name__}: {error}."
        ) from error
    limit.require_pixels(size, where)
    return size, shapes


def draw_shapes(
    size: tuple[int, int], shapes: Iterable[Shape], ids: Mapping[str, int], where: str, listed: str = "`class_map`"
) -> Array:
    """Draws areas in their order, later ones over earlier ones; what none covers is 255.

    Args:
        size: Height and width.
        shapes: The areas.
        ids: Raw id of each label; "cargroup" counts as "car" unless it is one of them.
        where: Path of the file that they come from, for messages.
        listed: What holds the labels, for messages.

    Returns:
        uint8 (H, W) of raw ids.

    Raises:
        DatasetError: If a label isn't known or a shape has no area.
    """
    image = Image.new("L", (size[1], size[0]), IGNORE_INDEX)
    drawing = ImageDraw.Draw(image)
    for shape in shapes:
        _draw(drawing, shape, _id(shape.label, ids, where, listed), where)
    return np.array(image)


def _id(label: str, ids: Mapping[str, int], where: str, listed: str) -> int:
    for name in (label, _single(label)):
        if name in ids:
            return ids[name]
    hint = did_you_mean(label, ids) or f"Labels are {', '.join(ids)}."
    raise DatasetError(f"{where}: found the label {label!r}, which {listed} doesn't hold. {hint}")


def _parsed(content: Any) -> tuple[tuple[int, int], list[Shape]]:
    if "shapes" in content:
        size = int(content["imageHeight"]), int(content["imageWidth"])
        shapes = [
            _shape(each["label"], each.get("shape_type", "polygon"), each["points"]) for each in content["shapes"]
        ]
    else:
        size = int(content["imgHeight"]), int(content["imgWidth"])
        there = [each for each in content["objects"] if not each.get("deleted")]
        shapes = [_shape(each["label"], "polygon", each["polygon"]) for each in there]
    if min(size) < 1:
        raise ValueError(f"a size of {size[0]} x {size[1]}")
    return size, shapes


def _shape(label: Any, kind: Any, points: Any) -> Shape:
    if not isinstance(label, str):
        raise TypeError(f"a label {label!r}")
    places = [(float(x), float(y)) for x, y in points]
    if not all(math.isfinite(value) for value in _flat(places)):
        raise ValueError(f"points of {label!r} that aren't finite")
    return Shape(label, str(kind), places)


def _flat(points: Sequence[Point]) -> Iterator[float]:
    for point in points:
        yield from point


def _single(label: str) -> str:
    """The label of one of a group: "car" of "cargroup"."""
    return label.removesuffix(_GROUP) if label != _GROUP else ""


def _draw(drawing: ImageDraw.ImageDraw, shape: Shape, fill: int, where: str) -> None:
    points = shape.points
    if shape.kind == "polygon" and len(points) >= 3:
        drawing.polygon(points, fill=fill)
    elif shape.kind == "rectangle" and len(points) == 2:
        (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
        drawing.rectangle((left, top, right, bottom), fill=fill)
    elif shape.kind == "circle" and len(points) == 2:
        (x, y), radius = points[0], math.dist(*points)
        drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        raise DatasetError(
            f"{where}: found a {shape.kind} of {len(points)} points with the label {shape.label!r}; expected a polygon "
            "of three or more, a rectangle or a circle of two. Draw it as an area, or take it away."
        )
