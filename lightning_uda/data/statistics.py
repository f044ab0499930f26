"""How often the classes of a labelled dataset occur, counted once and kept on disk."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.files import locked, parallel_map, replace_file
from lightning_uda.label_spaces import LabelSpace

CACHE_VARIABLE = "LIGHTNING_UDA_CACHE"
"""Environment variable that names the folder for counts when no `cache_dir` is given."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassStatistics:
    """Pixels of each class in each image of a dataset, at the size of the label files.

    Attributes:
        classes: The C class names of the label space, by train id.
        counts: (N, C), pixels of each class in each image.
    """

    classes: tuple[str, ...]
    counts: Counts

    @property
    def num_images(self) -> int:
        """Number of images, N."""
        return len(self.counts)

    @property
    def pixels(self) -> Counts:
        """(C,), pixels of each class in all images."""
        return np.asarray(self.counts.sum(axis=0))

    @property
    def images(self) -> Counts:
        """(C,), images that hold at least one pixel of each class."""
        return np.asarray((self.counts > 0).sum(axis=0))

    @property
    def image_frequency(self) -> npt.NDArray[np.float64]:
        """(C,), share of the images that hold each class: Eq. (1) of DSP."""
        return self.images / max(1, self.num_images)

    @property
    def pixel_frequency(self) -> npt.NDArray[np.float64]:
        """(C,), share of each class in the non-void pixels of all images; all 0 without any."""
        return self.pixels / max(1, int(self.pixels.sum()))

    def images_with(self, class_index: int, min_pixels: int = 1) -> Counts:
        """Indices of the images that hold a class, ascending.

        Args:
            class_index: Train id.
            min_pixels: Least number of its pixels.
        """
        return np.flatnonzero(self.counts[:, class_index] >= min_pixels)

    def least_frequent(self, k: int) -> list[int]:
        """Train ids of the `k` classes that the fewest images hold, the rarest first: the long-tail set of DSP.

        Classes that no image holds are left out, since there is nothing to draw; ties go to the smaller id.

        Args:
            k: Number of classes.

        Raises:
            ValueError: If fewer than `k` classes occur.
        """
        images = self.images
        held = np.flatnonzero(images)
        if not 0 <= k <= len(held):
            raise ValueError(
                f"Found k = {k} least frequent classes wanted, but {len(held)} of {len(self.classes)} classes occur in "
                "the labels; expected 0 to that number."
            )
        return [int(i) for i in held[np.argsort(images[held], kind="stable")][:k]]


def class_statistics(
    dataset: SegmentationDataset,
    label_space: LabelSpace,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> ClassStatistics:
    """Statistics of a labelled dataset: read from a file if its labels were counted before, else counted and kept.

    The file holds pixels by raw id under the dataset's fingerprint, so one count serves all label spaces and class
    maps. A missing, damaged or foreign file is counted again. Where none can be written, there is a warning.

    Args:
        dataset: Any labelled dataset.
        label_space: The classes wanted; pixels of all other classes are void and not counted.
        cache_dir: Folder of the file; `None` takes `user_cache_dir()`.
        workers: Threads; `None` takes Python's default for the machine.
        progress: Whether to show a progress bar on stderr.

    Raises:
        DatasetError: If the dataset has no labels, or one can't be read.
    """
    if not dataset.has_labels:
        raise DatasetError(
            f"{type(dataset).__name__}: class statistics need labels, but this dataset was made without. Give it its "
            "label folder."
        )
    folder = user_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    path = folder / f"{type(dataset).__name__}-classes-{dataset.fingerprint()}.npz"
    raw_counts = _read(path, len(dataset))
    if raw_counts is None:
        raw_counts = _count_and_keep(dataset, path, workers, progress)
    return _of_label_space(raw_counts, dataset, label_space)


def user_cache_dir() -> Path:
    """Folder for small files that can be made again: `$LIGHTNING_UDA_CACHE`, or `~/.cache/lightning_uda`."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/lightning_uda").expanduser()


def _count_and_keep(dataset: SegmentationDataset, path: Path, workers: int | None, progress: bool) -> Counts:
    """Counts under a lock, unless another process has done so while we waited for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        lock.touch()
    except OSError as error:
        warnings.warn(f"{path.parent}: class statistics can't be kept ({error}).", stacklevel=3)
        return _count(dataset, workers, progress)
    with locked(lock):
        raw_counts = _read(path, len(dataset))
        if raw_counts is None:
            raw_counts = _count(dataset, workers, progress)
            _keep(path, raw_counts)
    return raw_counts


def _count(dataset: SegmentationDataset, workers: int | None, progress: bool) -> Counts:
    """(N, 256), pixels of each raw id in each label map."""

    def count(index: int) -> Counts:
        return np.bincount(dataset.load_label(index).ravel(), minlength=256)

    indices = range(len(dataset))
    return np.array(parallel_map(count, indices, f"Counting classes of {len(dataset)} label maps", workers, progress))


def _keep(path: Path, raw_counts: Counts) -> None:
    ids = np.flatnonzero(raw_counts.any(axis=0))

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, ids=ids, counts=raw_counts[:, ids])

    try:
        replace_file(path, write)
    except OSError as error:
        warnings.warn(f"{path}: class statistics can't be kept ({error}).", stacklevel=4)


def _read(path: Path, length: int) -> Counts | None:
    """(length, 256), pixels of each raw id; `None` if there is no file or it can't be what was written."""
    try:
        with np.load(path) as file:
            ids, counts = file["ids"], file["counts"]
        if ids.dtype.kind != "i" or counts.dtype.kind != "i" or counts.shape[:1] != (length,):
            return None
        raw_counts = np.zeros((length, 256), np.int64)
        raw_counts[:, ids] = counts
    except Exception:  # whatever a damaged file makes numpy raise
        return None
    return raw_counts


def _of_label_space(raw_counts: Counts, dataset: SegmentationDataset, label_space: LabelSpace) -> ClassStatistics:
    table = label_space.lookup_table(dataset.class_ids)
    counts = [raw_counts[:, table == index].sum(axis=1) for index in range(label_space.num_classes)]
    return ClassStatistics(label_space.classes, np.stack(counts, axis=1))
