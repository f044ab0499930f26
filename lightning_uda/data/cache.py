"""A cache on disk of resized images and label maps.

Every array is a file of its own that is written aside and then renamed, so whatever is there is whole: an interrupted
build is taken up where it stopped, and two processes can't spoil each other's work. The folder's name holds the
fingerprint of the dataset, the size and the interpolation, so that a change of any of them gives another folder.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from torch import Generator
from torch.utils.data import Dataset

from lightning_uda.data.dataset import DatasetError, Problem, SegmentationDataset
from lightning_uda.data.decoding import decode_png
from lightning_uda.data.workers import WorkerLoader, start_worker
from lightning_uda.files import HAS_LOCKS, PARTIAL, free_bytes, gigabytes, locked, replace_file, shown, usable_cores
from lightning_uda.ranges import SIDE, ranged
from lightning_uda.resize import Interpolation, resize_image, resize_label

UInt8 = npt.NDArray[np.uint8]
CacheFormat = Literal["png", "memmap"]

_log = logging.getLogger(__name__)
_VERSION = 1  # to be raised when resizing or a format changes
_SAMPLED = 8  # images encoded to estimate the size of a set
_SAFETY = 1.1  # by which the rest may be larger than the sampled ones
_PNG_PARAMETERS = {
    3: (  # photographs: pixel differences to the row above, Huffman coded; smaller and faster to read than level 1
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    ),
    2: (  # label maps: long runs
        *(cv2.IMWRITE_PNG_COMPRESSION, 3),
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
    ),
}


class CachedDataset(SegmentationDataset):
    """A dataset whose images, and label maps if wanted, come resized from a cache.

    What is missing or damaged in the cache is read from the dataset and resized, so the pixels never depend on the
    cache. A damaged file is made again where it is found, with a warning; `build_caches` makes what is missing.

    Args:
        dataset: Where everything comes from.
        cache_dir: Folder that holds the caches of all datasets; made if needed.
        size: Height and width to resize to.
        interpolation: For the images; label maps are resized by nearest neighbour and keep their raw ids.
        labels: Whether label maps are resized and cached too; otherwise `load_label` gives those of the dataset.
        cache_format: "png" (lossless), or "memmap" (raw and about three times as large, but only the part of an
            array that is used is read from disk; the arrays can't be written to).
    """

    @ranged(size=SIDE)
    def __init__(
        self,
        dataset: SegmentationDataset,
        cache_dir: str | Path,
        size: tuple[int, int],
        interpolation: Interpolation = "bilinear",
        labels: bool = False,
        cache_format: CacheFormat = "png",
    ) -> None:
        self.dataset = dataset
        self.class_ids, self.strict_ids = dataset.class_ids, dataset.strict_ids
        self.has_labels = dataset.has_labels
        self.size = (size[0], size[1])
        self.interpolation: Interpolation = interpolation
        folder, codec = Path(cache_dir).expanduser(), _CODECS[cache_format]
        images = _folder_name(dataset, "images", (*self.size, 3), interpolation, cache_format)
        self.stores = [_Store(folder / images, len(dataset), (*self.size, 3), codec, self._resized_image)]
        if labels:
            name = _folder_name(dataset, "labels", self.size, "nearest", cache_format)
            self.stores.append(_Store(folder / name, len(dataset), self.size, codec, self._resized_label))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    @property
    def parts(self) -> tuple[int, ...]:
        """Those of the dataset."""
        return self.dataset.parts

    def name(self, index: int) -> str:
        """Name of image `index` in the dataset."""
        return self.dataset.name(index)

    def load_image(self, index: int) -> UInt8:
        """Image `index` as uint8 (*size, 3), RGB."""
        return self.stores[0].load(index)

    def load_label(self, index: int) -> UInt8:
        """Label map of image `index` as uint8 of raw ids: (*size) with `labels`, else as in the dataset."""
        return self.stores[1].load(index) if len(self.stores) > 1 else self.dataset.load_label(index)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of all images."""
        return self.size

    def image_file(self, index: int) -> str:
        """Path of the file of image `index` in the dataset, for messages."""
        return self.dataset.image_file(index)

    def label_file(self, index: int) -> str:
        """Path of the label map of image `index` in the dataset, for messages."""
        return self.dataset.label_file(index)

    def check(self, labels: bool = True) -> list[Problem]:
        """Problems of the dataset."""
        return self.dataset.check(labels)

    def fingerprint(self, labels: bool = True) -> str:
        """Key of the resized content."""
        resized = (self.dataset.fingerprint(labels), self.size, self.interpolation, len(self.stores))
        return hashlib.sha256(repr(resized).encode()).hexdigest()[:16]

    def _resized_image(self, index: int) -> UInt8:
        return resize_image(self.dataset.load_image(index), self.size, self.interpolation)

    def _resized_label(self, index: int) -> UInt8:
        return resize_label(self.dataset.load_label(index), self.size)


def build_caches(datasets: Iterable[CachedDataset], workers: int | None = None, progress: bool = True) -> None:
    """Writes what is missing in the caches of datasets, in parallel.

    Args:
        datasets: Cached datasets; those that share a folder are built once.
        workers: Processes, as decoding holds Python's global lock; 0 works in this one, `None` takes one per core.
        progress: Whether to show a progress bar on stderr.

    Raises:
        DatasetError: If the missing part doesn't fit on the disk (nothing is written then), if the cache folder can't
            be written to, or if an image can't be read. Arrays finished by then stay, and are taken up by a next build.
    """
    stores = {store.folder: store for dataset in datasets for store in dataset.stores}
    unfinished = [store for store in stores.values() if store.missing()]
    if not unfinished:
        return
    _require_space(unfinished)
    for store in unfinished:
        lock = store.folder / "build.lock"
        with _explained(store.folder):
            store.folder.mkdir(parents=True, exist_ok=True)
            lock.touch()
        with locked(lock):
            store.remove_partial_files()
            _write_all(store, store.missing(), usable_cores() if workers is None else workers, progress)


# Files


class _Codec(NamedTuple):
    """A file format: its ending, an array as bytes, and the array of a file (`None` if the file is damaged)."""

    suffix: str
    encode: Callable[[UInt8], bytes]
    read: Callable[[Path, tuple[int, ...]], UInt8 | None]


def _encode_png(array: UInt8) -> bytes:
    pixels = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if array.ndim == 3 else array
    return cv2.imencode(".png", pixels, _PNG_PARAMETERS[array.ndim])[1].tobytes()


def _read_png(path: Path, shape: tuple[int, ...]) -> UInt8 | None:
    data = path.read_bytes()
    try:
        array = decode_png(data)
    except ValueError:
        return None
    return array if array.shape == shape else None


def _map_raw(path: Path, shape: tuple[int, ...]) -> UInt8 | None:
    """A read-only view of the file, of which only the pages that are used are read."""
    try:
        pixels = np.memmap(str(path), np.uint8, mode="r").view(np.ndarray)  # of a `Path` it would resolve every link
    except ValueError:  # the file is empty
        return None
    return pixels.reshape(shape) if pixels.size == math.prod(shape) else None


_CODECS: dict[CacheFormat, _Codec] = {
    "png": _Codec(".png", _encode_png, _read_png),
    "memmap": _Codec(".raw", np.ndarray.tobytes, _map_raw),
}


@dataclass(frozen=True)
class _Store:
    """The files of one kind of array of one dataset.

    Attributes:
        folder: Where they are.
        length: Number of arrays.
        shape: Shape of each.
        codec: File format.
        make: Gives the array of an index when there is no file.
    """

    folder: Path
    length: int
    shape: tuple[int, ...]
    codec: _Codec
    make: Callable[[int], UInt8]

    @property
    def title(self) -> str:
        kind = "images" if len(self.shape) == 3 else "label maps"
        return f"{self.length} {kind} of {self.shape[0]} x {self.shape[1]}"

    def load(self, index: int) -> UInt8:
        try:
            array = self.codec.read(self._path(index), self.shape)
        except OSError:
            return self.make(index)
        return self._mended(index) if array is None else array

    def write(self, index: int) -> None:
        array = self.make(index)
        with _explained(self.folder):
            self._save(index, array)

    def _mended(self, index: int) -> UInt8:
        """The array of a damaged file, which is made again if the folder can be written to."""
        _warn_of_damage(self.folder, self._path(index).name)
        array = self.make(index)
        with suppress(OSError):
            self._save(index, array)
        return array

    def _save(self, index: int, array: UInt8) -> None:
        data = self.codec.encode(array)
        replace_file(self._path(index), lambda path: path.write_bytes(data))

    def missing(self) -> list[int]:
        """Indices without a file."""
        there: set[str] = set()
        if self.folder.is_dir():
            there = {  # others may be writing here: their partial files come and go
                entry.name
                for entry in os.scandir(self.folder)
                if entry.name.endswith(self.codec.suffix) and entry.stat().st_size
            }
        return [index for index in range(self.length) if self._path(index).name not in there]

    def remove_partial_files(self) -> None:
        """Clears up after a build that was killed; only for the holder of the lock, so not where there are no locks."""
        for path in self.folder.glob(f"*{PARTIAL}") if HAS_LOCKS else ():
            path.unlink(missing_ok=True)

    def bytes_needed(self) -> int:
        """Estimate for the missing arrays, from a few of them."""
        missing = self.missing()
        sample = missing[:: -(-len(missing) // _SAMPLED)]
        sizes = [len(self.codec.encode(self.make(index))) for index in sample]
        return int(_SAFETY * len(missing) * sum(sizes) / len(sizes))

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}{self.codec.suffix}"


_warned_of: set[Path] = set()


def _warn_of_damage(folder: Path, name: str) -> None:
    """Warns once per folder and process."""
    if folder not in _warned_of:
        _warned_of.add(folder)
        _log.warning(
            "%s: %s is damaged; it and any other damaged file are made again from the dataset. Check the disk.",
            *(folder, name),
        )


class _Writer(Dataset[DatasetError | None]):
    """Makes files of a cache in loader workers; errors come back as items, so that their messages stay as they are."""

    def __init__(self, store: _Store, indices: Sequence[int]) -> None:
        self.store = store
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> DatasetError | None:
        try:
            self.store.write(self.indices[position])
        except DatasetError as error:
            return error
        return None


def _write_all(store: _Store, indices: Sequence[int], workers: int, progress: bool) -> None:
    if not indices:
        return
    writer, workers = _Writer(store, indices), min(workers, len(indices))
    own_generator = Generator()  # the global one must not feel whether a cache was built
    results = WorkerLoader(
        writer, batch_size=None, num_workers=workers, generator=own_generator, worker_init_fn=start_worker
    )
    for error in shown(results, f"Caching {store.title}", len(indices), progress):
        if error is not None:
            raise error


def _folder_name(
    dataset: SegmentationDataset, kind: str, shape: Sequence[int], interpolation: str, cache_format: CacheFormat
) -> str:
    content = dataset.fingerprint(labels=kind == "labels")
    key = hashlib.sha256(repr((_VERSION, content, kind, *shape, interpolation, cache_format)).encode()).hexdigest()
    return f"{type(dataset).__name__}-{kind}-{shape[0]}x{shape[1]}-{interpolation}-{cache_format}-{key[:16]}"


def _require_space(stores: Sequence[_Store]) -> None:
    needed = sum(store.bytes_needed() for store in stores)
    cache_dir = stores[0].folder.parent
    if needed > (free := free_bytes(cache_dir)):
        raise DatasetError(
            f"{cache_dir}: the cache needs about {gigabytes(needed)} ({', '.join(store.title for store in stores)}), "
            f"but only {gigabytes(free)} are free. Make room, choose another `cache_dir`, or do without a cache "
            '(`cache_dir: null`); cache_format "png" takes about a third of "memmap". Nothing was written.'
        )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns what the system says while writing to a cache into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"{folder}: the cache can't be written ({error}); {gigabytes(free_bytes(folder))} are free. Make room, "
            "mend the permissions or choose another `cache_dir`; what is finished stays and the next run takes it up."
        ) from error
