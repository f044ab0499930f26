"""What every dataset offers to the data module."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_uda.errors import MendableError
from lightning_uda.files import gigabytes


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file or with a whole dataset.

    Attributes:
        where: File or folder.
        what: What was found, what was expected and how to mend it, in one line.
    """

    where: str
    what: str


class Frame(NamedTuple):
    """Which frame of a video an image is.

    Attributes:
        video: Name of the video.
        number: Of the frame, from 0.
        frames: How many the video has.
        fps: Frames in a second.
    """

    video: str
    number: int
    frames: int
    fps: float


class DatasetError(MendableError):
    """A dataset can't be used as configured; the message names the files and the fix."""


class UnreadableFileError(DatasetError):
    """One file is gone, damaged or too large, while others of its set may be sound; the message begins with it."""


@dataclass(frozen=True)
class SizeLimit:
    """How large a file may be, so that none takes all memory; looked at before anything is decoded or unpacked.

    Attributes:
        megapixels: Million pixels of an image or a label map. Of a file, and of what a member of an archive unpacks
            to, 4 bytes are read for each.
    """

    megapixels: float = 100.0

    def require_pixels(self, size: tuple[int, int], where: str) -> None:
        """Checks the height and width that a file's header gives.

        Raises:
            UnreadableFileError: If it has too many pixels.
        """
        if size[0] * size[1] > 1e6 * self.megapixels:
            found = f"{size[0]} x {size[1]} pixels (height x width, {size[0] * size[1] / 1e6:.0f} megapixels)"
            raise UnreadableFileError(f"{where}: found {found}, {self._expected(f'{self.megapixels:g} megapixels')}")

    def require_bytes(self, count: int, where: str) -> None:
        """Checks the length of a file, or of what it unpacks to.

        Raises:
            UnreadableFileError: If it is too long.
        """
        most = 4e6 * self.megapixels
        if count > most:
            expected = self._expected(f"{most / 1e6:g} MB (4 bytes for each of {self.megapixels:g} megapixels)")
            raise UnreadableFileError(f"{where}: found a file of {gigabytes(count)}, {expected}")

    def _expected(self, most: str) -> str:
        return (
            f"expected at most {most}. Make it smaller, cut it into tiles or take it away, or raise the limit "
            "(data.max_megapixels) if the memory is there."
        )


class SegmentationDataset(ABC):
    """A numbered set of RGB images with, optionally, label maps of raw ids.

    Images and labels are read by separate methods, so that unlabelled target training never opens a label.
    Readers do no resizing, cropping, remapping or normalisation.

    Attributes:
        class_ids: Class name of each raw label id; `None` stands for void.
        strict_ids: Whether a raw id outside `class_ids` is an error (else it is void).
        sizes_may_differ: Whether the set is known for label maps of another size than their image, as GTA5 is: then
            `resize` in the transform, which brings both to one size, makes the pair usable.
        has_labels: Whether `load_label` works.
        size_limit: How large files may be, for readers of files.
        raw_counts: (256,), pixels of each raw id in all label maps, for readers whose `check` has decoded them.
    """

    class_ids: Mapping[int, str | None]
    strict_ids: bool = False
    sizes_may_differ: bool = False
    has_labels: bool = True
    size_limit: SizeLimit = SizeLimit()
    raw_counts: npt.NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @property
    def sets(self) -> tuple[SegmentationDataset, ...]:
        """The sets that this one was put together of, in the order of the images; itself where it wasn't."""
        return (self,)

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of images of each of the sets that this one was put together of, in the order of the images."""
        return (len(self),)

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of an image, without folder or extension; unique in the set."""

    @abstractmethod
    def load_image(self, index: int) -> npt.NDArray[np.uint8]:
        """Image `index` as uint8 (H, W, 3), RGB."""

    @abstractmethod
    def load_label(self, index: int) -> npt.NDArray[np.uint8]:
        """Label map of image `index` as uint8 (H, W) of raw ids."""

    def frame(self, index: int) -> Frame | None:
        """Which frame of which video image `index` is; `None` for an image of its own."""
        return None

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index`; readers that can tell without decoding the image override this."""
        height, width, _ = self.load_image(index).shape
        return height, width

    def image_file(self, index: int) -> str:
        """Path of the file of image `index`, or a name for it where there is no file; messages show it."""
        return f"{self.name(index)} (image)"

    def label_file(self, index: int) -> str:
        """Path of the label map of image `index`, or a name for it where there is no file; messages show it."""
        return f"{self.name(index)} (label)"

    def check(self, labels: bool = True) -> list[Problem]:
        """Finds problems that would stop or spoil a run, without decoding every image.

        Args:
            labels: Whether to check the labels too; off for a set that is used without them.

        Returns:
            One entry per problem; empty if the set can be used.
        """
        return []

    def remarks(self) -> list[Problem]:
        """Findings that `lightning-uda data check` shows as warnings, because they may be intended."""
        return []

    def fingerprint(self, labels: bool = True) -> str:
        """Key of the content, under which caches are kept: another content, order or setting gives another key.

        Covers the class, its public settings that are numbers, text or tuples, the names in order, and the size and
        time of each file that `image_file` and `label_file` give (of the archive, for a file in one). Folders don't
        count unless they are such a setting. A reader whose content depends on anything else extends this.

        Args:
            labels: Whether the label maps belong to the content.

        Returns:
            16 hexadecimal digits.
        """
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        settings = {key: value for key, value in vars(self).items() if _is_setting(key, value)}
        digest = hashlib.sha256(repr((kind, sorted(settings.items()), labels)).encode())
        for index in range(len(self)):
            files = [self.image_file(index), *([self.label_file(index)] if labels and self.has_labels else [])]
            digest.update(repr((self.name(index), [_file_stamp(file) for file in files])).encode())
        return digest.hexdigest()[:16]


def _is_setting(key: str, value: object) -> bool:
    return not key.startswith("_") and key != "has_labels" and isinstance(value, str | int | float | tuple | None)


def _file_stamp(file: str) -> tuple[int, int] | None:
    """Size in bytes and time in ns of a file, or of the archive its path leads into; `None` if there is neither."""
    path = Path(file)
    for place in (path, *path.parents):
        try:
            found = place.stat()
        except OSError:
            continue
        return (found.st_size, found.st_mtime_ns) if place.is_file() else None
    return None
