"""Any folder of images, with or without a folder of label maps."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

from lightning_uda.data.dataset import DatasetError, Problem, SegmentationDataset
from lightning_uda.data.decoding import (
    check_image_file,
    file_problem,
    largest_of_16_bits,
    read_image,
    read_label,
    size_mismatch,
    unlisted_ids,
)
from lightning_uda.data.listing import folder_contents, read_name_list, require_root, some, walk
from lightning_uda.label_spaces import UNQUOTED
from lightning_uda.ranges import BITS, ranged

Array = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_DEEP_EXTENSIONS = (".png", ".tif", ".tiff")  # of image files that may have 16 bits
_CAMERA_BITS = (8, 10, 12, 14)
_SAMPLED = 8  # images looked at for unused bits
LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp")
LOSSY_EXTENSIONS = (".jpg", ".jpeg")
CLASS_MAP_FILES = ("classes.json", "classes.yaml", "classes.yml")


class FolderDataset(SegmentationDataset):
    """Images of a folder, found recursively, with label maps of the same relative names in another.

    An image's name is its path in the image folder without extension, "/" between folders. Images may be PNG, JPEG,
    BMP, WebP or TIFF; labels are single-channel PNG, TIFF or BMP files (8-bit grey, palette, 16-bit grey with ids below
    256) whose stored numbers are the raw ids. EXIF orientation is ignored, so that image and label stay pixel-aligned.
    The constructor only lists files; `check` looks into them.

    Args:
        root: Folder of the dataset.
        images: Image folder, absolute or relative to `root`.
        labels: Label folder, absolute or relative to `root`; `None` for an unlabelled set. It may be the image folder,
            if `label_suffix` tells the labels apart.
        split: Text file, absolute or relative to `root`, with one image name per line; blank lines and lines that
            begin with # are skipped. `None` takes all images.
        class_map: Class name of each raw id (`None` for void), or the path of a JSON or YAML file with such a mapping
            or with {ids: mapping, ignore: id or list of ids}. `None` reads `classes.json` or `classes.yaml` in `root`.
        ignore_ids: Raw ids that are void. Ids neither here nor in the map are errors.
        image_suffix: End of image file names that doesn't belong to the name, such as "_leftImg8bit"; files without
            it are skipped.
        label_suffix: The same of label file names, such as "_gtFine_labelIds". Without `labels`, files with it aren't
            taken for images.
        unpaired: What to do with images without label, and, where no `split` lists the images, with labels without
            image: "refuse" has `check` name them as problems; "skip" leaves them out, and `remarks` names them.
        image_bits: How many bits of image files of 16 bits hold data. A camera of 12 bits stores numbers up to 4,095,
            which are nearly black of 16 bits; with 12 they are white. `remarks` says when the numbers look like that.

    Raises:
        DatasetError: If a folder, the list file, an image, all labels or the class map is missing or doesn't fit, or
            if an image's only label is a JPEG. If some images have no label, `check` and `load_label` say so.
    """

    strict_ids = True
    label_extensions: Sequence[str] = LABEL_EXTENSIONS

    @ranged(image_bits=BITS)
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
        unpaired: Literal["refuse", "skip"] = "refuse",
        image_bits: int = 16,
    ) -> None:
        self.root = Path(root).expanduser()
        self.image_bits = image_bits
        self.has_labels = labels is not None
        label_folder = None if labels is None else self.root / labels
        alike = any(extension in IMAGE_EXTENSIONS for extension in self.label_extensions)
        image_files = _list_images(self.root, self.root / images, label_folder, image_suffix, label_suffix, alike)
        self._names = (
            sorted(image_files) if split is None else read_name_list(self.root, split, image_files, min(image_files))
        )
        self._image_folder, self._label_folder, self._label_suffix = self.root / images, label_folder, label_suffix
        self._labels: list[Path | None] = []
        self._unpaired = unpaired
        self._skipped: list[str] = []
        self._extra_labels: list[str] = []
        if label_folder is not None:
            label_files = _list_labels(self.root, label_folder, label_suffix, self.label_extensions)
            _refuse_lossy(self._names, label_folder, label_files, label_suffix)
            _require_labels(self._names, label_folder, label_files, label_suffix + self.label_extensions[0])
            extra = sorted(set(label_files) - set(image_files)) if split is None else []
            self._extra_labels = [label_files[name].relative_to(label_folder).as_posix() for name in extra]
            if unpaired == "skip":
                self._skipped = [name for name in self._names if name not in label_files]
                self._names = [name for name in self._names if name in label_files]
            self._labels = [label_files.get(name) for name in self._names]
        self._images = [image_files[name] for name in self._names]
        needs_map = self.has_labels or class_map is not None
        self.class_ids: Mapping[int, str | None] = self.find_class_ids(class_map, ignore_ids) if needs_map else {}

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
            DatasetError: If the set has no labels, or this image has none.
        """
        label = self._label(index)
        if label is None:
            raise DatasetError(f"{self._label_folder}: {self._missing_labels}")
        return label

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index`, from the header of its file."""
        return check_image_file(self.image_path(index), self.size_limit)

    def image_file(self, index: int) -> str:
        """Path of image `index`."""
        return str(self.image_path(index))

    def label_file(self, index: int) -> str:
        """Path of the label map of image `index`; the folder where it is missing."""
        return str(self._label(index) or self._label_folder)

    def load_image(self, index: int) -> Array:
        """Image `index` as uint8 (H, W, 3), RGB."""
        return read_image(self.image_path(index), self.size_limit, self.image_bits)

    def load_label(self, index: int) -> Array:
        """Label map of image `index` as uint8 (H, W) of raw ids."""
        return self.read_label(self.label_path(index))

    def read_label(self, path: Path) -> Array:
        """Label map of a file, uint8 (H, W) of raw ids."""
        return read_label(path, self.size_limit)

    def find_class_ids(
        self, class_map: Mapping[int, str | None] | str | None, ignore_ids: Sequence[int]
    ) -> dict[int, str | None]:
        """Class name of each raw id, of what the constructor was given."""
        return read_class_ids(self.root, class_map, ignore_ids)

    def check(self, labels: bool = True) -> list[Problem]:
        """Looks at the headers and ends of all images and decodes all labels, in parallel.

        Args:
            labels: Whether to look at labels too.

        Returns:
            One entry for all missing labels and one for all labels without image, unless these are skipped; every image
            or label that is unreadable, cut off or of another size than its partner, and every label with ids outside
            the class map.
        """
        unlabelled = self._missing_labels if labels else ""
        missing = [Problem(str(self._label_folder), unlabelled)] if unlabelled else []
        if labels and self._extra_labels and self._unpaired == "refuse":
            what = f"{self._extra}. Add the images, take these files away, or set `unpaired: skip`."
            missing.append(Problem(str(self._label_folder), what))
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(lambda index: self._check_pair(index, labels), range(len(self))))
        if labels and self.has_labels:
            self.raw_counts = sum((counts for _, counts in results), np.zeros(256, np.int64))
        return [*missing, *(problem for found, _ in results for problem in found)]

    def remarks(self) -> list[Problem]:
        """Names what is skipped, images that look like labels, and data of fewer bits than the files have."""
        of = len(self._skipped) + len(self)
        images = f"skipped {len(self._skipped)} of {of} images, which have no label: {some(self._skipped)}"
        skipped_labels = bool(self._extra_labels) and self._unpaired == "skip"
        found = [images] * bool(self._skipped) + [f"skipped: {self._extra}"] * skipped_labels
        remarks = [Problem(str(self._label_folder), what) for what in found]
        of_images = [self._labels_among_images(), self._bits_unused()]
        return [*remarks, *(Problem(str(self._image_folder), what) for what in of_images if what)]

    def _labels_among_images(self) -> str:
        """Says that half of the images have the names of the others and an ending, as labels beside images do."""
        names = set(self._names)
        endings = Counter(name[end:] for name in self._names for end in range(1, len(name)) if name[:end] in names)
        ending, count = max(endings.items(), key=lambda item: item[1], default=("", 0))
        if self.has_labels or 2 * count < len(self) or ending.isdigit():
            return ""
        return (
            f"{count} of {len(self)} images have the name of another and {ending!r}: labels beside their images? Leave "
            f"them out with `label_suffix: {ending}`."
        )

    def _bits_unused(self) -> str:
        """Says that numbers in files of 16 bits are those of a camera of fewer, as far as a few files tell."""
        if self.image_bits < 16:
            return ""
        sample = self._images[:: -(-len(self) // _SAMPLED)]
        try:
            found = [largest for path in sample if (largest := self._largest(path)) is not None]
        except DatasetError:
            return ""  # `check` names it
        bits = next((bits for bits in _CAMERA_BITS if found and max(found) < 2**bits), None)
        if bits is None:
            return ""
        return (
            f"the numbers in {len(found)} image files of 16 bits reach {max(found)} of 65535, so that the images are "
            f"nearly black. If the data has {bits} bits, set `image_bits: {bits}`."
        )

    def _largest(self, path: Path) -> int | None:
        return largest_of_16_bits(path, self.size_limit) if path.suffix.lower() in _DEEP_EXTENSIONS else None

    @property
    def _extra(self) -> str:
        return f"{len(self._extra_labels)} labels have no image: {some(self._extra_labels)}"

    def _label(self, index: int) -> Path | None:
        if not self.has_labels:
            raise DatasetError(
                f"{self.root}: this dataset was made without labels (`labels: null`), but the label of "
                f"{self.name(index)!r} was asked for. Give it a `labels` folder."
            )
        return self._labels[index]

    @cached_property
    def _missing_labels(self) -> str:
        """Says which images have no label; nothing if each has one."""
        pairs = zip(self._names, self._labels, strict=self.has_labels)
        missing = [f"{name}{self._label_suffix}{self.label_extensions[0]}" for name, label in pairs if label is None]
        if not missing:
            return ""
        return (
            f"{len(missing)} of {len(self)} images have no label: {some(missing)}. Add these files, list the "
            "labelled images in a `split` file, or set `unpaired: skip`."
        )

    def _check_pair(self, index: int, labels: bool) -> tuple[list[Problem], Counts]:
        """Problems of an image and its label map, and the pixels of each raw id in that, (256,)."""
        problems, counts = [], np.zeros(256, np.int64)
        size = None
        try:
            size = check_image_file(self.image_path(index), self.size_limit)
        except DatasetError as error:
            problems.append(file_problem(self.image_path(index), error))
        path = self._labels[index] if labels and self.has_labels else None
        if path is None:
            return problems, counts
        try:
            label = self.read_label(path)
        except DatasetError as error:
            return [*problems, file_problem(path, error)], counts
        counts = np.bincount(label.ravel(), minlength=256)
        found = [size_mismatch(label.shape, size), unlisted_ids(counts, self.class_ids)]
        return [*problems, *(Problem(str(path), what) for what in found if what)], counts


class ImageFolder(FolderDataset):
    """Images of a folder and its subfolders, without labels: for prediction, or as an unlabelled target.

    Args:
        root: Folder of the images.
        split: Text file, absolute or relative to `root`, with one image name per line; `None` takes all images.
        label_suffix: End of the names of label files that lie among the images, such as "_label"; they are skipped.
        image_bits: How many bits of image files of 16 bits hold data, see `FolderDataset`.

    Raises:
        DatasetError: If the folder or the list file is missing or empty.
    """

    def __init__(self, root: str, split: str | None = None, label_suffix: str = "", image_bits: int = 16) -> None:
        super().__init__(root, images="", labels=None, split=split, label_suffix=label_suffix, image_bits=image_bits)


# Listing


def _list_images(
    root: Path, folder: Path, label_folder: Path | None, suffix: str, label_suffix: str, alike: bool
) -> dict[str, Path]:
    _require_folder(root, folder, "images")
    beside = label_folder is not None and folder.resolve() == label_folder.resolve()
    if beside and alike and not label_suffix:
        raise DatasetError(
            f"{folder}: `images` and `labels` are the same folder, and no `label_suffix` tells which files are labels. "
            "Set it to the end of their names, such as `label_suffix: _label` for img_01_label.png beside img_01.jpg."
        )
    among = label_folder is None or (beside and alike)
    files = _list_files(folder, IMAGE_EXTENSIONS, suffix, label_folder, label_suffix if among else "")
    if not files:
        wanted = f" with names that end in {suffix!r}" if suffix else ""
        raise DatasetError(
            f"{folder}: no images found; expected files ending in {', '.join(IMAGE_EXTENSIONS)}{wanted}. "
            f"{folder_contents(folder)}"
        )
    return files


def _list_labels(root: Path, folder: Path, suffix: str, extensions: Sequence[str]) -> dict[str, Path]:
    _require_folder(root, folder, "labels", " For a set without labels, use ImageFolder or set `labels: null`.")
    return _list_files(folder, extensions, suffix)


def _require_folder(root: Path, folder: Path, argument: str, hint: str = "") -> None:
    require_root(root)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: folder not found. {folder_contents(root)} Correct `{argument}`.{hint}")


def _list_files(
    folder: Path, extensions: Sequence[str], suffix: str, skip: Path | None = None, not_suffix: str = ""
) -> dict[str, Path]:
    """Files below a folder by name; hidden ones, the folder `skip` and names that end in `not_suffix` left out."""
    files: dict[str, Path] = {}
    for place, subfolders, entries in walk(folder):
        subfolders[:] = [sub for sub in subfolders if not sub.startswith(".") and Path(place, sub) != skip]
        for entry in entries:
            path = Path(place, entry)
            if entry.startswith(".") or path.suffix.lower() not in extensions or not path.stem.endswith(suffix):
                continue
            if not_suffix and path.stem.endswith(not_suffix):
                continue
            name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(suffix)
            if name in files:
                raise DatasetError(
                    f"{path}: found a second file named {name!r} beside {files[name].name}; expected one per name. "
                    "Rename or delete one."
                )
            files[name] = path
    return files


def _refuse_lossy(names: Sequence[str], folder: Path, labels: Mapping[str, Path], suffix: str) -> None:
    """Refuses images whose only label is a JPEG."""
    without = {name for name in names if name not in labels}
    if not without:
        return
    files = _list_files(folder, LOSSY_EXTENSIONS, suffix)
    if lossy := [files[name].relative_to(folder).as_posix() for name in sorted(without & files.keys())]:
        raise DatasetError(
            f"{folder}: found {len(lossy)} JPEG labels, such as {some(lossy)}; JPEG is lossy and mixes the ids at "
            "borders. Export the labels again as PNG, TIFF or BMP; converting the JPEGs doesn't bring the ids back."
        )


def _require_labels(names: Sequence[str], folder: Path, labels: Mapping[str, Path], ending: str) -> None:
    """Refuses a label folder that holds none of the images' labels."""
    if any(name in labels for name in names):
        return
    there = (
        f"It holds {len(labels)} other label files, such as {labels[min(labels)].relative_to(folder).as_posix()}."
        if labels
        else folder_contents(folder)
    )
    raise DatasetError(
        f"{folder}: none of the {len(names)} images has a label; expected "
        f"{some([f'{name}{ending}' for name in names], 3)}. {there} Rename the files, correct `labels` or "
        "`label_suffix`, or set `labels: null`."
    )


# Class maps


def read_class_ids(
    root: Path, class_map: Mapping[int, str | None] | str | None, ignore_ids: Sequence[int] = ()
) -> dict[int, str | None]:
    """Class name of each raw id, `None` for void; arguments as in `FolderDataset`.

    Raises:
        DatasetError: If the class map isn't there or doesn't fit.
    """
    if class_map is None:
        found = [name for name in CLASS_MAP_FILES if (root / name).is_file()]
        if not found:
            raise DatasetError(
                f"{root}: no class map for the labels. Give `class_map`, raw id to class name with null for void, such "
                f"as {{0: road, 1: sky, 2: null}}, or write it into {root / CLASS_MAP_FILES[0]} as "
                '{"ids": {"0": "road", "1": "sky"}, "ignore": 255}; without labels to read, set `labels: null`.'
            )
        class_map = found[0]
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
            f"{UNQUOTED * isinstance(name, bool)}"
        )
    return name
