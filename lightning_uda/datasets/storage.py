"""Public datasets in their official layout, unpacked or read in place from the archives they come in."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import DatasetError, Problem, SegmentationDataset, SizeLimit, UnreadableFileError
from lightning_uda.data.decoding import (
    check_image_file,
    decode_image,
    decode_label,
    file_problem,
    image_size,
    is_png,
    png_size,
    read_file,
    require_file,
    require_label_png,
    size_mismatch,
)
from lightning_uda.data.listing import folder_contents, read_name_list, require_root, some, walk

Array = npt.NDArray[np.uint8]

_FOLDERS_BELOW = 2
_HEAD_BYTES = 32
_BROKEN_MEMBER = (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError)
"""What zipfile raises for damaged members; for encrypted and oddly compressed ones it is a RuntimeError."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file on disk or inside a zip archive.

    Attributes:
        path: Of the file, or of the member inside the archive.
        archive: The archive; `None` for a file on disk.
    """

    path: str
    archive: str | None = None

    def __str__(self) -> str:
        """Its name in messages: "labels/00001.png" or, in an archive, "01_labels.zip/labels/00001.png"."""
        return self.path if self.archive is None else f"{self.archive}/{self.path}"


@dataclass(frozen=True)
class Part:
    """The images or the label maps of a dataset: where they are stored and how they are named.

    Attributes:
        what: "images" or "labels".
        tree: Folder they lie in, in the archives and once unpacked.
        file: Regular expression of their file names, with the image's name as group `name`.
        example: Path of one file below `tree`, for messages.
        archives: The official archives that hold them, for messages.
        folders: Regular expression of the folders between `tree` and the files, each followed by "/".
        note: A remark that messages add.
        also: Further folders that may stand for `tree`.
    """

    what: str
    tree: str
    file: str
    example: str
    archives: str
    folders: str = ""
    note: str = ""
    also: tuple[str, ...] = ()


class Storage:
    """Files of a dataset below one folder: unpacked trees, zip archives, or some of both.

    Trees may lie in the folder itself or up to two folders below; archives lie in the folder itself and may have any
    name. Where a file is there twice, an unpacked one comes before an archive, a tree further up before one further
    down, and archives come in the order of their names. Archives are opened when first read from, anew in every
    process, and stay open there; pickling leaves open ones behind.

    Args:
        root: The folder.

    Raises:
        DatasetError: If it isn't there.
    """

    def __init__(self, root: Path) -> None:
        require_root(root)
        self.root = root
        self._opened: dict[str, zipfile.ZipFile] = {}
        self._process = os.getpid()

    def find(self, part: Part) -> dict[str, StoredFile]:
        """All files of a part by name, sorted; empty if there are none.

        Raises:
            DatasetError: If an archive in the folder is no whole zip file.
        """
        pattern = re.compile(part.folders + part.file)
        found: dict[str, StoredFile] = {}
        trees = (part.tree, *part.also)
        for files in (self._unpacked, self._archived):
            for below, file in (pair for tree in trees for pair in files(tree)):
                if match := pattern.fullmatch(below):
                    found.setdefault(match["name"], file)
        return dict(sorted(found.items()))

    def read(self, file: StoredFile, size: int | None = None, limit: SizeLimit = SizeLimit()) -> bytes:
        """The bytes of a file, or its first `size` ones; no more are unpacked than the limit allows.

        Raises:
            UnreadableFileError: If it can't be read, or is too long.
        """
        if file.archive is None:
            return read_file(Path(file.path), limit, -1 if size is None else size)
        try:
            archive = self._archive(file.archive)
            member = archive.getinfo(file.path)
            limit.require_bytes(member.file_size, str(file))
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack in one go
                raise RuntimeError(f"its compression method is not supported: {member.compress_type}")
            with archive.open(member) as opened:  # asked for a number of bytes, it unpacks no more, whatever is there
                return opened.read(member.file_size if size is None else size)
        except _BROKEN_MEMBER as error:
            raise UnreadableFileError(f"{file}: can't be read ({error}). Download the archive again.") from error
        except DatasetError:
            raise
        except RuntimeError as error:
            raise UnreadableFileError(
                f"{file}: can't be read ({error}). Unpack the archive, or pack it again without a password, stored or "
                "deflated."
            ) from error

    def image_size(self, file: StoredFile, head: bytes = b"", limit: SizeLimit = SizeLimit()) -> tuple[int, int]:
        """Height and width from the header; tests that the file is whole, as far as that needs no unpacking.

        Args:
            file: An image or a label map.
            head: Its first 32 bytes, if they have been read.
            limit: How large it may be.

        Raises:
            DatasetError: If it is empty, cut off, no image, or too large.
        """
        if file.archive is None:
            return check_image_file(Path(file.path), limit)
        head = head or self.read(file, _HEAD_BYTES, limit)
        if not is_png(head):
            return image_size(self.read(file, limit=limit), str(file), limit)
        limit.require_pixels(png_size(head), str(file))
        return png_size(head)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the opened archives."""
        return {**self.__dict__, "_opened": {}}

    def _archive(self, path: str) -> zipfile.ZipFile:
        """An opened archive of this process; one that a parent process opened shares its place in the file with it."""
        if self._process != os.getpid():
            self._opened, self._process = {}, os.getpid()  # in this order, as another thread may look between the two
        if path not in self._opened:
            self._opened.setdefault(path, _open_zip(path))
        return self._opened[path]

    def _unpacked(self, tree: str) -> Iterator[tuple[str, StoredFile]]:
        """Files on disk below every folder `tree`, with their paths below it."""
        for top in _trees(self.root, tree):
            for place, subfolders, names in walk(top):
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                below = "" if place == str(top) else Path(place).relative_to(top).as_posix() + "/"
                for name in sorted(names):
                    if not name.startswith("."):
                        yield below + name, StoredFile(os.path.join(place, name))

    def _archived(self, tree: str) -> Iterator[tuple[str, StoredFile]]:
        """Members of all archives below a folder `tree`, with their paths below it."""
        for archive in sorted(str(path) for path in self.root.glob("*.zip") if not path.name.startswith(".")):
            for member in _member_names(archive, os.stat(archive).st_mtime_ns):
                path = f"/{member}".replace("\\", "/")  # some packers write backslashes
                before, found, below = path.partition(f"/{tree}/")
                if found and not before.startswith("/__MACOSX"):
                    yield below, StoredFile(member, archive)


class StoredDataset(SegmentationDataset):
    """A public dataset read by way of `Storage`; the readers of the benchmarks derive from it.

    Args:
        root: Folder of the unpacked dataset, of its archives, or of both.
        images: Where the images are.
        labels: Where the label maps are; `None` for an unlabelled set, whose labels are never looked for.
        split: List file with one image name per line, absolute or relative to `root`; folders, the ends of file
            names and further columns are dropped, so that lists of published programs can be used. `None` takes all
            images.
        full_size: Number of images in the whole set, without `split`; `None` if that isn't known.

    Attributes:
        tree: Folder of the images; tells apart what has the same names in the same archive.

    Raises:
        DatasetError: If there are no images, no labels of them, or names of the list are missing; the message says
            which and what should be there. If some images have no label, `check` and `load_label` say so.
    """

    @property
    @abstractmethod
    def title(self) -> str:
        """Name of the dataset in messages."""

    @property
    @abstractmethod
    def home(self) -> str:
        """Where to get it, for messages."""

    def __init__(
        self,
        root: str,
        images: Part,
        labels: Part | None,
        split: str | None = None,
        full_size: int | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.tree = images.tree
        self.has_labels = labels is not None
        self.storage = Storage(self.root)
        image_files = self._find(images)
        self._names = list(image_files)
        if split is not None:
            self._names = read_name_list(self.root, split, image_files, self._names[0], _bare_name(images))
        self._images = [image_files[name] for name in self._names]
        self._label_part = labels
        label_files = {} if labels is None else self._find(labels)
        self._labels = [] if labels is None else self._match_labels(labels, label_files)
        self._extra_labels = sorted(set(label_files) - set(image_files)) if split is None else []
        self._full_size = full_size if split is None else None

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def name(self, index: int) -> str:
        """Name of image `index`: that of its file, without folder, ending and what all files have in common."""
        return self._names[index]

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index`, from the header of its file."""
        return self.storage.image_size(self._images[index], limit=self.size_limit)

    def image_file(self, index: int) -> str:
        """Path of image `index`; in an archive, below the archive's."""
        return str(self._images[index])

    def label_file(self, index: int) -> str:
        """Path of the label map of image `index`, in an archive below the archive's; `root` if it is missing.

        Raises:
            DatasetError: If the set was made without labels.
        """
        self._require_labelled(index)
        return str(self._labels[index] or self.root)

    def load_image(self, index: int) -> Array:
        """Image `index` as uint8 (H, W, 3), RGB."""
        file = self._images[index]
        return decode_image(self.storage.read(file, limit=self.size_limit), str(file), self.size_limit)

    def load_label(self, index: int) -> Array:
        """Label map of image `index` as uint8 (H, W) of raw ids.

        Raises:
            DatasetError: If the set was made without labels, or this one is missing or can't be decoded.
        """
        self._require_labelled(index)
        file = self._labels[index]
        if file is None:
            raise DatasetError(f"{self.root}: {self._missing_labels}")
        return self.decode_label(self.storage.read(file, limit=self.size_limit), str(file))

    def decode_label(self, data: bytes, where: str) -> Array:
        """Raw ids, uint8 (H, W), of a label file's bytes.

        Raises:
            DatasetError: If it isn't a label file of this dataset.
        """
        return decode_label(data, where, self.size_limit)

    def check_label_kind(self, head: bytes, where: str) -> None:
        """Checks by the first 26 bytes that a label file is of the dataset's kind.

        Raises:
            DatasetError: If it isn't.
        """
        require_label_png(head, where)

    def label_size(self, file: StoredFile, head: bytes) -> tuple[int, int]:
        """Height and width of a label, without decoding it; `head` is its first 32 bytes.

        Raises:
            DatasetError: If the file is cut off, of another kind or too large.
        """
        return self.storage.image_size(file, head, self.size_limit)

    def check(self, labels: bool = True) -> list[Problem]:
        """Looks at the headers of all files and at the ends of unpacked ones, in parallel; decodes none.

        Args:
            labels: Whether to look at labels too.

        Returns:
            One entry for all missing labels; every file that is unreadable, empty, cut off or of the wrong kind, and
            every label of another size than its image where the dataset isn't known for such pairs.
        """
        unlabelled = self._missing_labels if labels else ""
        missing = [Problem(str(self.root), unlabelled)] if unlabelled else []
        with ThreadPoolExecutor() as pool:
            results = pool.map(lambda index: self._check_pair(index, labels), range(len(self)))
            return [*missing, *(problem for found in results for problem in found)]

    def remarks(self) -> list[Problem]:
        """Says so if the set isn't complete and no list asked for a part of it, or if labels have no image."""
        found = []
        if self._full_size is not None and len(self) != self._full_size:
            found.append(
                f"found {len(self)} images; the whole set has {self._full_size}. Is a part or an archive missing?"
            )
        if self._extra_labels:
            found.append(f"{len(self._extra_labels)} labels have no image: {some(self._extra_labels)}")
        return [Problem(str(self.root), what) for what in found]

    def _require_labelled(self, index: int) -> None:
        if not self.has_labels:
            raise DatasetError(
                f"{self.root}: this dataset was made without labels (`labelled: false`), but the label of "
                f"{self.name(index)!r} was asked for. Set `labelled: true`."
            )

    def _find(self, part: Part) -> dict[str, StoredFile]:
        if found := self.storage.find(part):
            return found
        hint = " For an unlabelled set, say `labelled: false`." if part.what == "labels" else ""
        raise DatasetError(
            f"{self.root}: no {self.title} {part.what} found; expected the folder {part.tree}/ with files such as "
            f"{part.example}, here or up to two folders below, or, as downloaded from {self.home}, {part.archives}."
            f"{' ' * bool(part.note)}{part.note} {folder_contents(self.root)} Add what is missing, or correct "
            f"`root`.{hint}"
        )

    def _match_labels(self, part: Part, files: Mapping[str, StoredFile]) -> list[StoredFile | None]:
        """The label of each image, `None` where it is missing; raises if there is none for any of them."""
        labels = [files.get(name) for name in self._names]
        if not any(labels):
            raise DatasetError(
                f"{self.root}: none of the {len(labels)} {self.title} images has a label in {part.tree}/; expected "
                f"files named like {part.example} for {some(self._names, 3)}, found {len(files)} for others, such as "
                f"{min(files)}. Add {part.archives}, or correct `root`."
            )
        return labels

    @cached_property
    def _missing_labels(self) -> str:
        """Says which images have no label; nothing if each has one."""
        missing = [name for name, label in zip(self._names, self._labels, strict=self.has_labels) if label is None]
        if self._label_part is None or not missing:
            return ""
        return (
            f"{len(missing)} of {len(self)} {self.title} images have no label in {self._label_part.tree}/: "
            f"{some(missing)}. Expected one for each, named like {self._label_part.example}; is a part of "
            f"{self._label_part.archives} missing? Add it, or list the labelled images in a `split` file."
        )

    def _check_pair(self, index: int, labels: bool) -> list[Problem]:
        image, problems, size = self._images[index], [], None
        try:
            size = self.storage.image_size(image, limit=self.size_limit)
        except DatasetError as error:
            problems.append(file_problem(str(image), error))
        label = self._labels[index] if labels and self.has_labels else None
        if label is None:
            return problems
        try:
            head = self.storage.read(label, _HEAD_BYTES, self.size_limit)
            self.check_label_kind(head, str(label))
            mismatch = size_mismatch(self.label_size(label, head), size)
        except DatasetError as error:
            return [*problems, file_problem(str(label), error)]
        if mismatch and not self.sizes_may_differ:
            problems.append(Problem(str(label), mismatch))
        return problems


def with_void(class_ids: Mapping[int, str | None], void_ids: Iterable[int]) -> dict[int, str | None]:
    """An id table in which ids without a class are listed as void, so that a check tells them from unknown ones.

    Args:
        class_ids: Class name of raw ids.
        void_ids: More raw ids that the dataset is known to hold; those in `class_ids` keep their class.
    """
    return {**dict.fromkeys(void_ids), **class_ids}


def _bare_name(images: Part) -> Callable[[str], str]:
    """Takes an image's name from a line of a list file: drops folders, file name endings and other columns."""
    pattern = re.compile(images.file)

    def bare(line: str) -> str:
        files = [word.rsplit("/", 1)[-1] for word in line.split()]
        matches = [match["name"] for file in files if (match := pattern.fullmatch(file))]
        return matches[0] if matches else files[0]

    return bare


def _trees(root: Path, tree: str) -> Iterator[Path]:
    """Every folder `tree` in `root` or up to two folders below."""
    folders = [root]
    for depth in range(_FOLDERS_BELOW + 1):
        yield from (folder / tree for folder in folders if os.path.isdir(folder / tree))
        if depth < _FOLDERS_BELOW:
            folders = [below for folder in folders for below in _subfolders(folder)]


def _subfolders(folder: Path) -> list[Path]:
    """Folders in a folder; none if it can't be read, as `lost+found` on a disk of its own."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except PermissionError:
        return []


def _open_zip(path: str) -> zipfile.ZipFile:
    try:
        require_file(Path(path))
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DatasetError(
            f"{path}: not a whole zip archive ({error}); expected one with its directory at the end, which a download "
            "that stopped lacks. Download it again, or take it away."
        ) from error


@cache
def _member_names(archive: str, modified_ns: int) -> tuple[str, ...]:
    """Files in an archive, read once for all parts; the time of change tells a replaced archive."""
    with _open_zip(archive) as opened:
        names = opened.namelist()
    return tuple(name for name in names if not name.endswith("/") and not os.path.basename(name).startswith("."))
