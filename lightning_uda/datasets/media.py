"""Images and videos by their paths, for prediction."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import DatasetError, Frame, Problem, SegmentationDataset, UnreadableFileError
from lightning_uda.data.decoding import check_image_file, file_problem, read_image
from lightning_uda.data.listing import folder_contents, read_text, some, walk
from lightning_uda.datasets.folder import IMAGE_EXTENSIONS
from lightning_uda.ranges import BITS, ranged

Array = npt.NDArray[np.uint8]

VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
_DEFAULT_FPS = 25.0  # of files that don't say
_MOST_FPS = 1000.0


class _Video(NamedTuple):
    frames: int
    fps: float


@dataclass
class _Reader:
    """A video that a process has opened, and the number of its next frame."""

    process: int
    path: Path
    capture: cv2.VideoCapture
    following: int = 0


class MediaFiles(SegmentationDataset):
    """Images, and the frames of videos, of files and of folders with all that is below them, without labels.

    A name is the file's path without extension, "/" between folders, counted from the deepest folder that holds all
    paths that are given: for one folder from that folder. Where two names would be one (a.jpg and a.png; a.mp4 beside a
    folder a), these files keep their extensions in it. Frame 7 of a video a is called a/000007; frames are numbered
    from 0 and stand in the order of the video. Other files in folders are passed over.

    Args:
        paths: Images, videos, folders, and lists: text files (.txt) of such paths, one a line, absolute or relative to
            the list's folder; blank lines and lines that begin with # are skipped.
        image_bits: How many bits of image files of 16 bits hold data, as it was in training; see `FolderDataset`.

    Raises:
        DatasetError: If a path isn't there, is no image, video or list, or if there is no image and no video.
    """

    has_labels = False

    @ranged(image_bits=BITS)
    def __init__(self, paths: Sequence[str], image_bits: int = 16) -> None:
        self.image_bits = image_bits
        self.class_ids = {}
        given = [place for path in paths for place in _listed(Path(path).expanduser())]
        files = list(dict.fromkeys(file for place in given for file in _media_of(place)))
        if not files:
            where = ", ".join(map(str, given)) or "no path"
            inside = folder_contents(given[0]) if len(given) == 1 else ""
            raise DatasetError(
                f"{where}: no images or videos found; expected files ending in "
                f"{', '.join((*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS))}. {inside}".strip()
            )
        self._files = files
        self._file_names = _names_of(files, _common_folder(given))
        self._seen: dict[Path, _Video] = {}
        self._reader: _Reader | None = None

    @cached_property
    def _videos(self) -> dict[int, _Video]:
        """Frames and rate of the videos, by the numbers of their files."""
        numbers = [number for number, file in enumerate(self._files) if _is_video(file)]
        with ThreadPoolExecutor() as pool:
            return dict(
                zip(numbers, pool.map(lambda number: self._look_through(self._files[number]), numbers), strict=True)
            )

    @cached_property
    def _ends(self) -> list[int]:
        """Number of images up to the end of each file."""
        videos = self._videos
        return list(accumulate(videos[file].frames if file in videos else 1 for file in range(len(self._files))))

    def __len__(self) -> int:
        """Number of images and frames."""
        return self._ends[-1]

    def name(self, index: int) -> str:
        """Name of image or frame `index`."""
        file, number = self._place(index)
        return f"{self._file_names[file]}/{number:06d}" if file in self._videos else self._file_names[file]

    def frame(self, index: int) -> Frame | None:
        """Which frame of which video an image is."""
        file, number = self._place(index)
        video = self._videos.get(file)
        return None if video is None else Frame(self._file_names[file], number, video.frames, video.fps)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width; of an image from the header of its file."""
        path = self._files[self._place(index)[0]]
        return super().image_size(index) if _is_video(path) else check_image_file(path, self.size_limit)

    def image_file(self, index: int) -> str:
        """Path of the image or the video."""
        return str(self._files[self._place(index)[0]])

    def load_image(self, index: int) -> Array:
        """Image or frame `index` as uint8 (H, W, 3), RGB.

        Raises:
            UnreadableFileError: If it can't be decoded.
        """
        file, number = self._place(index)
        path = self._files[file]
        return self._read_frame(path, number) if _is_video(path) else read_image(path, self.size_limit, self.image_bits)

    def load_label(self, index: int) -> Array:
        """There are none.

        Raises:
            DatasetError: Always.
        """
        raise DatasetError(
            f"{self.image_file(index)}: MediaFiles has no labels. Take FolderDataset for labelled images."
        )

    def check(self, labels: bool = True) -> list[Problem]:
        """Looks at the headers and ends of all images and goes through all videos."""
        with ThreadPoolExecutor() as pool:
            return [problem for problem in pool.map(self._check, self._files) if problem is not None]

    def _check(self, path: Path) -> Problem | None:
        try:
            if _is_video(path):
                self._look_through(path)
            else:
                check_image_file(path, self.size_limit)
        except DatasetError as error:
            return file_problem(path, error)
        return None

    def _look_through(self, path: Path) -> _Video:
        """Goes through a video once, as the number of frames that its header gives may be wrong."""
        if path not in self._seen:
            self._seen[path] = _looked_through(path)
        return self._seen[path]

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the file of image `index`, and of the frame in it."""
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - (self._ends[file - 1] if file else 0)

    def _read_frame(self, path: Path, number: int) -> Array:
        """A frame of a video; going forwards none is decoded twice."""
        reader = self._reader
        if reader is None or (reader.process, reader.path) != (os.getpid(), path) or reader.following > number:
            reader = self._reader = _Reader(os.getpid(), path, _opened(path))
        while reader.following < number and reader.capture.grab():
            reader.following += 1
        there, image = reader.capture.read()
        reader.following += 1
        if not there:
            raise UnreadableFileError(f"{path}: frame {number} can't be decoded. Copy the file again or delete it.")
        return cast(Array, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _listed(path: Path) -> list[Path]:
    """A path, or those that a list file holds."""
    if not path.exists():
        there = f" {folder_contents(path.parent)}" if path.parent.is_dir() else f" {path.parent} doesn't exist either."
        raise DatasetError(f"{path}: not found; expected an image, a video, a folder or a list of them.{there}")
    if path.suffix.lower() != ".txt" or path.is_dir():
        return [path]
    lines = [line.strip() for line in read_text(path).splitlines()]
    found = [path.parent / Path(line).expanduser() for line in lines if line and not line.startswith("#")]
    if missing := [str(one) for one in found if not one.exists()]:
        raise DatasetError(
            f"{path}: {len(missing)} of the {len(found)} paths in it aren't there: {some(missing)}. Expected one path "
            "a line, absolute or relative to the list's folder."
        )
    return found


def _media_of(path: Path) -> list[Path]:
    """The images and videos of a folder and all below it, in the order of their names, or the file itself."""
    if path.is_dir():
        found = []
        for place, subfolders, entries in walk(path):
            subfolders[:] = [sub for sub in subfolders if not sub.startswith(".")]
            found += [Path(place, entry) for entry in entries if not entry.startswith(".") and _is_media(entry)]
        return sorted(found)
    if not _is_media(path):
        raise DatasetError(
            f"{path}: neither an image nor a video by its name; expected one of "
            f"{', '.join((*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS))}, or .txt for a list of paths."
        )
    return [path]


def _common_folder(given: Sequence[Path]) -> Path:
    """The deepest folder that holds all paths."""
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in given]
    try:
        return Path(os.path.commonpath(folders))
    except ValueError as error:  # drives of Windows
        raise DatasetError(
            f"{', '.join(folders)}: found folders of several drives. Predict them one by one."
        ) from error


def _names_of(files: Sequence[Path], folder: Path) -> list[str]:
    """A name of its own for each file, by its place below a folder."""
    full = [Path(os.path.relpath(os.path.abspath(file), folder)).as_posix() for file in files]
    plain = [Path(name).with_suffix("").as_posix() for name in full]
    counts = Counter(plain)
    folders = {parent.as_posix() for name in full for parent in Path(name).parents}
    taken = [counts[one] > 1 or (_is_video(file) and one in folders) for file, one in zip(files, plain, strict=True)]
    names = [long if known else short for long, short, known in zip(full, plain, taken, strict=True)]
    return names if len(set(names)) == len(names) else full


def _is_media(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS


def _opened(path: Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise UnreadableFileError(
            f"{path}: can't be opened as a video. Copy it again, or convert it (`ffmpeg -i FILE out.mp4`)."
        )
    return capture


def _looked_through(path: Path) -> _Video:
    capture, count = _opened(path), 0
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    while capture.grab():
        count += 1
    capture.release()
    if not count:
        raise UnreadableFileError(f"{path}: this video has no frame that can be decoded. Copy it again or convert it.")
    return _Video(count, fps if 0 < fps <= _MOST_FPS else _DEFAULT_FPS)
