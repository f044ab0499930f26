"""Any folder of images, with or without a folder of label maps."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from lightning_uda.data.datasets.base import DatasetError, Problem, SegmentationDataset

Array = npt.NDArray[np.uint8]

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
LABEL_EXTENSIONS = (".png",)
CLASS_MAP_FILES = ("classes.json", "classes.yaml", "classes.yml")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_COLOR_TYPES = {0: "grey", 2: "RGB colour", 3: "palette", 4: "grey with alpha", 6: "RGBA colour"}
_GREY_SCALE = {1: 1, 2: 85, 4: 17}  # Pillow stretches grey of less than 8 bits to 0-255 (of 1 bit: to 0-1)
_JPEG_SIGNATURE, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_TAIL_BYTES = 1 << 16
_EXIF_ORIENTATION = 0x0112
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken files


class FolderDataset(SegmentationDataset):
    """Images of a folder, found recursively, with label maps of the same relative names in another.

    An image's name is its path in the image folder without extension, "/" between folders. Images may be PNG, JPEG,
    BMP, WebP or TIFF; labels are single-channel PNG files (8-bit grey, palette, 16-bit grey with ids below 256) whose
    stored numbers are the raw ids. EXIF orientation is ignored, so that image and label stay pixel-aligned.
    The constructor only lists files; `check` looks into them.

    Args:
        root: Folder of the dataset.
        images: Image folder, absolute or relative to `root`.
        labels: Label folder, absolute or relative to `root`; `None` for an unlabelled set.
        split: Text file, absolute or relative to `root`, with one image name per line; blank lines and lines that
            begin with # are skipped. `None` takes all images.
        class_map: Class name of each raw id (`None` for void), or the path of a JSON or YAML file with such a mapping
            or with {ids: mapping, ignore: id or list of ids}. `None` reads `classes.json` or `classes.yaml` in `root`.
        ignore_ids: Raw ids that are void. Ids neither here nor in the map are errors.
        image_suffix: End of image file names that doesn't belong to the name, such as "_leftImg8bit"; files without
            it are skipped.
        label_suffix: The same of label file names, such as "_gtFine_labelIds".

    Raises:
        DatasetError: If a folder, the list file, an image, a label or the class map is missing or doesn't fit.
    """

    strict_ids = True

    def __init__(
        self,
        root: str,
        images: str = "images",
        labels: str | None = "labels",
        split: str | None = None,
        class_map: dict[int, str | None] | str | None = None,
        ignore_ids: Sequence[int] = (255,),
        image_suffix: str = "",
        label_suffix: str = "",
    ) -> None:
        self.root = Path(root).expanduser()
        self.has_labels = labels is not None
        label_folder = None if labels is None else self.root / labels
        image_files = _list_images(self.root, self.root / images, label_folder, image_suffix)
        self._names = sorted(image_files) if split is None else _read_split(self.root, split, image_files)
        self._images = [image_files[name] for name in self._names]
        self._labels: list[Path] = []
        if label_folder is not None:
            label_files = _list_labels(self.root, label_folder, label_suffix)
            _require_labels(self._names, label_folder, label_files, label_suffix)
            self._labels = [label_files[name] for name in self._names]
        needs_map = self.has_labels or class_map is not None
        self.class_ids: Mapping[int, str | None] = _class_ids(self.root, class_map, ignore_ids) if needs_map else {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def name(self, index: int) -> str:
        """Relative path of image `index`, without extension and suffix."""
        return self._names[index]

    def image_path(self, index: int) -> Path:
        """File of image `index`."""
        return self._images[index]

    def label_path(self, index: int) -> Path:
        """File of the label map of image `index`.

        Raises:
            DatasetError: If the set has no labels.
        """
        if not self.has_labels:
            raise DatasetError(
                f"{self.root}: this dataset was made without labels (`labels: null`), but the label of "
                f"{self.name(index)!r} was asked for. Give it a `labels` folder."
            )
        return self._labels[index]

    def load_image(self, index: int) -> Array:
        """Image `index` as uint8 (H, W, 3), RGB."""
        return read_image(self.image_path(index))

    def load_label(self, index: int) -> Array:
        """Label map of image `index` as uint8 (H, W) of raw ids."""
        return read_label(self.label_path(index))

    def check(self) -> list[Problem]:
        """Looks at the headers and ends of all images and decodes all labels, in parallel.

        Returns:
            Every image or label that is unreadable, cut off or of another size than its partner, and every label with
            ids outside the class map.
        """
        with ThreadPoolExecutor() as pool:
            return [problem for found in pool.map(self._check_pair, range(len(self))) for problem in found]

    def _check_pair(self, index: int) -> list[Problem]:
        problems = []
        size = None
        try:
            size = check_image_file(self.image_path(index))
        except DatasetError as error:
            problems.append(file_problem(self.image_path(index), error))
        if self.has_labels:
            problems += self._check_label(index, size)
        return problems

    def _check_label(self, index: int, image_size: tuple[int, int] | None) -> list[Problem]:
        path = self.label_path(index)
        try:
            label = read_label(path)
        except DatasetError as error:
            return [file_problem(path, error)]
        counts = np.bincount(label.ravel(), minlength=256)
        found = [size_mismatch(label.shape, image_size), unlisted_ids(counts, self.class_ids)]
        return [Problem(str(path), what) for what in found if what]


def read_image(path: Path) -> Array:
    """Decodes an image file; alpha is dropped, grey repeated, EXIF orientation ignored.

    Args:
        path: PNG, JPEG, BMP, WebP or TIFF file.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DatasetError: If the file is missing, empty, cut off, no image, or a TIFF that asks to be turned.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: can't be read ({error}). Restore the file or its permissions.") from error
    _require_whole(path, data)
    _refuse_turned_tiff(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise DatasetError(_not_an_image(path, data))
    return cast(Array, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def read_label(path: Path) -> Array:
    """Decodes a label map without touching the stored numbers: palette files give indices, not colours.

    Args:
        path: Single-channel PNG file: grey of 1 to 16 bits, or palette.

    Returns:
        uint8 (H, W) of raw ids.

    Raises:
        DatasetError: If the file is missing, broken, of another kind, or holds ids above 255.
    """
    try:
        with path.open("rb") as file:
            scale = _grey_scale(path, file)
            label = np.array(Image.open(file))
    except _UNREADABLE as error:
        raise DatasetError(
            f"{path}: label can't be decoded ({error}). Copy the file again or delete the pair."
        ) from error
    if label.dtype.itemsize > 1 and label.max() > 255:
        raise DatasetError(
            f"{path}: found 16-bit ids up to {label.max()}, expected class ids below 256. Give class ids, not instance "
            "ids or depth."
        )
    ids: Array = label.astype(np.uint8)
    return ids if scale == 1 else ids // np.uint8(scale)


def check_image_file(path: Path) -> tuple[int, int]:
    """Reads an image's header and tests that the file is whole; PNG and JPEG files aren't decoded.

    Args:
        path: PNG, JPEG, BMP, WebP or TIFF file.

    Returns:
        Height and width.

    Raises:
        DatasetError: If the file is missing, empty, cut off, no image, or a TIFF that asks to be turned.
    """
    try:
        ends = _read_ends(path)
    except OSError as error:
        raise DatasetError(f"{path}: can't be read ({error}). Restore the file or its permissions.") from error
    if not ends.startswith((_PNG_SIGNATURE, _JPEG_SIGNATURE)):
        height, width, _ = read_image(path).shape
        return height, width
    _require_whole(path, path.read_bytes() if _is_cut_off(ends) else ends)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _UNREADABLE as error:
        raise DatasetError(_not_an_image(path, ends)) from error


def file_problem(path: Path | str, error: Exception) -> Problem:
    """A problem from an error whose message may begin with the file's path."""
    text = str(error) if isinstance(error, DatasetError) else f"{type(error).__name__}: {error}"
    return Problem(str(path), text.removeprefix(f"{path}: "))


def size_mismatch(label_size: Sequence[int], image_size: Sequence[int] | None) -> str | None:
    """Says that label and image differ in size; `None` if they don't, or if the image's size isn't known.

    Args:
        label_size: Height and width of the label map.
        image_size: Height and width of the image.
    """
    if image_size is None or tuple(label_size) == tuple(image_size):
        return None
    return (
        f"label is {label_size[0]} x {label_size[1]} (height x width), its image {image_size[0]} x {image_size[1]}; "
        "expected equal sizes. Export the label again at the image's size, or resize it with nearest neighbour."
    )


def unlisted_ids(counts: npt.NDArray[np.integer], class_ids: Mapping[int, str | None]) -> str | None:
    """Says which raw ids a class map doesn't list; `None` if it lists all that occur.

    Args:
        counts: (256,), pixels of each raw id.
        class_ids: Class name of each raw id, `None` for void.
    """
    unlisted = [int(i) for i in np.flatnonzero(counts) if int(i) not in class_ids]
    if not unlisted:
        return None
    pixels = ", ".join(f"{i}: {counts[i]}" for i in unlisted)
    return (
        f"found ids {unlisted} (pixels: {pixels}), expected only {_ranges(class_ids)}. Add them to `class_map` "
        "(null for void) or to `ignore_ids`, or mend the label."
    )


def _ranges(ids: Iterable[int]) -> str:
    runs = groupby(enumerate(sorted(ids)), key=lambda pair: pair[1] - pair[0])
    ends = [[i for _, i in run] for _, run in runs]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)


def _some(names: Sequence[str], count: int = 5) -> str:
    shown = ", ".join(names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"


# Files


def _read_ends(path: Path) -> bytes:
    """The first bytes of a file and its last 64 KiB, or all of it if shorter."""
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(max(len(head), path.stat().st_size - _TAIL_BYTES))
        return head + file.read()


def _is_cut_off(data: bytes) -> bool:
    """Whether a PNG or JPEG lacks its end marker; a thumbnail's end marker, before the last scan, doesn't count."""
    if data.startswith(_PNG_SIGNATURE):
        return _PNG_END not in data
    if data.startswith(_JPEG_SIGNATURE):
        end = data.rfind(_JPEG_END)
        return end < 0 or _JPEG_SCAN in data[end:]
    return False


def _require_whole(path: Path, data: bytes) -> None:
    if not data:
        raise DatasetError(f"{path}: empty file (0 bytes), expected an image. Copy it again or delete it.")
    if _is_cut_off(data):
        raise DatasetError(f"{path}: the file is cut off (its end marker is missing). Copy it again or delete it.")


def _not_an_image(path: Path, data: bytes) -> str:
    return (
        f"{path}: can't be decoded as an image (begins with {data[:8]!r}); expected 8- or 16-bit PNG, JPEG, BMP, WebP "
        "or TIFF. Convert it, copy it again or delete it."
    )


def _refuse_turned_tiff(path: Path, data: bytes) -> None:
    if not data.startswith((b"II", b"MM")):
        return
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _UNREADABLE as error:
        raise DatasetError(_not_an_image(path, data)) from error
    if orientation != 1:
        raise DatasetError(
            f"{path}: TIFF with orientation tag {orientation}, expected 1: decoders would turn the image but not its "
            "label. Save it as PNG."
        )


def _grey_scale(path: Path, file: BinaryIO) -> int:
    """Checks a label's PNG header, goes back to the start, and says by how much Pillow stretches its numbers."""
    header = file.read(26)
    file.seek(0)
    if len(header) < 26 or not header.startswith(_PNG_SIGNATURE):
        raise DatasetError(
            f"{path}: label isn't a PNG file ({'empty' if not header else f'begins with {header[:8]!r}'}); expected a "
            "single-channel PNG of class ids. Save it again or copy it again."
        )
    depth, color_type = header[24], header[25]
    if color_type not in (0, 3):
        kind = _PNG_COLOR_TYPES.get(color_type, f"unknown (type {color_type})")
        raise DatasetError(
            f"{path}: label is a PNG of kind {kind}; expected a single-channel PNG (grey or palette) whose numbers are "
            "class ids. Convert the colours to ids."
        )
    return _GREY_SCALE.get(depth, 1) if color_type == 0 else 1


# Listing


def _list_images(root: Path, folder: Path, label_folder: Path | None, suffix: str) -> dict[str, Path]:
    _require_folder(root, folder, "images")
    files = _list_files(folder, IMAGE_EXTENSIONS, suffix, label_folder)
    if not files:
        wanted = f" with names that end in {suffix!r}" if suffix else ""
        raise DatasetError(
            f"{folder}: no images found; expected files ending in {', '.join(IMAGE_EXTENSIONS)}{wanted}. "
            f"{_contents(folder)}"
        )
    return files


def _list_labels(root: Path, folder: Path, suffix: str) -> dict[str, Path]:
    _require_folder(root, folder, "labels", " For a set without labels, set `labels: null`.")
    return _list_files(folder, LABEL_EXTENSIONS, suffix, None)


def _require_folder(root: Path, folder: Path, argument: str, hint: str = "") -> None:
    if not root.is_dir():
        parent = root.parent
        there = _contents(parent) if parent.is_dir() else f"{parent} doesn't exist either."
        raise DatasetError(f"{root}: dataset folder not found. {there} Correct `root`.")
    if not folder.is_dir():
        raise DatasetError(f"{folder}: folder not found. {_contents(root)} Correct `{argument}`.{hint}")


def _contents(folder: Path) -> str:
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return f"{folder} holds: {_some(entries, 10)}." if entries else f"{folder} is empty."


def _list_files(folder: Path, extensions: Sequence[str], suffix: str, skip: Path | None) -> dict[str, Path]:
    """Files below a folder by name, hidden ones and the folder `skip` left out."""
    files: dict[str, Path] = {}
    for place, subfolders, entries in os.walk(folder, followlinks=True):
        subfolders[:] = [sub for sub in subfolders if not sub.startswith(".") and Path(place, sub) != skip]
        for entry in entries:
            path = Path(place, entry)
            if entry.startswith(".") or path.suffix.lower() not in extensions or not path.stem.endswith(suffix):
                continue
            name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(suffix)
            if name in files:
                raise DatasetError(
                    f"{path}: found a second file named {name!r} beside {files[name].name}; expected one per name. "
                    "Rename or delete one."
                )
            files[name] = path
    return files


def _read_split(root: Path, split: str, images: Mapping[str, Path]) -> list[str]:
    path = root / Path(split).expanduser()
    if not path.is_file():
        lists = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.txt"))
        there = f"{root} holds these .txt files: {_some(lists, 10)}." if lists else f"{root} holds no .txt file."
        raise DatasetError(
            f"{path}: list file `split` not found; expected a path, absolute or relative to root. {there}"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DatasetError(f"{path}: the list file names no image; expected one name per line, without extension.")
    if unknown := [name for name in names if name not in images]:
        raise DatasetError(
            f"{path}: {len(unknown)} of {len(names)} names have no image: {_some(unknown)}. Expected names like "
            f"{next(iter(sorted(images)))!r}, relative to the image folder and without extension."
        )
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DatasetError(f"{path}: {len(twice)} names are listed more than once: {_some(twice)}. List each once.")
    return names


def _require_labels(names: Sequence[str], folder: Path, labels: Mapping[str, Path], suffix: str) -> None:
    missing = [f"{name}{suffix}.png" for name in names if name not in labels]
    if not missing:
        return
    if len(missing) == len(names):
        there = (
            f"It holds {len(labels)} other PNG files, such as {min(labels)}{suffix}.png."
            if labels
            else _contents(folder)
        )
        raise DatasetError(
            f"{folder}: none of the {len(names)} images has a label; expected {_some(missing, 3)}. {there} Rename the "
            "files, correct `labels` or `label_suffix`, or set `labels: null`."
        )
    raise DatasetError(
        f"{folder}: {len(missing)} of {len(names)} images have no label: {_some(missing)}. Add these files, or list "
        "the labelled images in a `split` file."
    )


# Class maps


def _class_ids(
    root: Path, class_map: Mapping[int, str | None] | str | None, ignore_ids: Sequence[int]
) -> dict[int, str | None]:
    if class_map is None:
        found = [root / name for name in CLASS_MAP_FILES if (root / name).is_file()]
        if not found:
            raise DatasetError(
                f"{root}: no class map for the labels. Give `class_map`, raw id to class name with null for void, such "
                f"as {{0: road, 1: sky, 2: null}}, or write it into {root / CLASS_MAP_FILES[0]} as "
                '{"ids": {"0": "road", "1": "sky"}, "ignore": 255}; without labels to read, set `labels: null`.'
            )
        class_map = str(found[0])
    if isinstance(class_map, str):
        path = root / Path(class_map).expanduser()
        ids, ignored = _read_class_map(path)
        return _merge_ids(str(path), ids, [*ignored, *ignore_ids])
    return _merge_ids(f"{root}: class_map", class_map, ignore_ids)


def _read_class_map(path: Path) -> tuple[Mapping[Any, Any], list[Any]]:
    if not path.is_file():
        raise DatasetError(f"{path}: class map file not found; expected a path, absolute or relative to root.")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: class map can't be parsed ({' '.join(str(error).split())}).") from error
    ids = content.get("ids", content) if isinstance(content, dict) else None
    if not isinstance(ids, dict):
        raise DatasetError(f"{path}: expected a mapping of raw ids to class names, or {{ids: mapping, ignore: id}}.")
    ignore = content.get("ignore", []) if ids is not content else []
    return ids, ignore if isinstance(ignore, list) else [ignore]


def _merge_ids(where: str, ids: Mapping[Any, Any], ignored: Iterable[Any]) -> dict[int, str | None]:
    merged = {_raw_id(where, key): _class_name(where, key, value) for key, value in ids.items()}
    if not any(merged.values()):
        raise DatasetError(f"{where}: names no class; expected at least one raw id with a class name.")
    for raw_id in [_raw_id(where, value) for value in ignored]:
        if merged.setdefault(raw_id, None) is not None:
            raise DatasetError(
                f"{where}: raw id {raw_id} is both class {merged[raw_id]!r} and ignored. Take it out of `class_map` or "
                "out of `ignore_ids`."
            )
    return merged


def _raw_id(where: str, value: Any) -> int:
    try:
        raw_id = int(value)
    except (TypeError, ValueError):
        raw_id = -1
    if not 0 <= raw_id <= 255:
        raise DatasetError(f"{where}: raw id {value!r} isn't an integer from 0 to 255.")
    return raw_id


def _class_name(where: str, raw_id: Any, name: Any) -> str | None:
    if name is not None and not (isinstance(name, str) and name):
        raise DatasetError(
            f"{where}: class of raw id {raw_id} is {name!r}; expected a name (in quotes) or null for void."
        )
    return name
