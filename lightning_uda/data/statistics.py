"""How often the classes of a labelled dataset occur, counted once and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_uda.data.counts import Arrays, counts_folder, load_or_count
from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.files import parallel_map
from lightning_uda.label_spaces import LabelSpace

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
        cache_dir: Folder of the file; `None` takes the user's (`counts_folder`).
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
    path = counts_folder(cache_dir) / f"{type(dataset).__name__}-classes-{dataset.fingerprint()}.npz"

    def count() -> Arrays:
        return _count(dataset, workers, progress)

    kept = load_or_count(path, lambda arrays: _fits(arrays, len(dataset)), count, "class statistics")
    return _of_label_space(kept, dataset, label_space)


def _count(dataset: SegmentationDataset, workers: int | None, progress: bool) -> Arrays:
    """The raw ids that occur, (R,), and the pixels of each in each label map, (N, R)."""

    def count(index: int) -> Counts:
        return np.bincount(dataset.load_label(index).ravel(), minlength=256)

    indices = range(len(dataset))
    title = f"Counting classes of {len(dataset)} label maps"
    counts = np.array(parallel_map(count, indices, title, workers, progress))
    ids = np.flatnonzero(counts.any(axis=0))
    return {"ids": ids, "counts": counts[:, ids]}


def _fits(arrays: Arrays, num_maps: int) -> bool:
    ids, counts = arrays["ids"], arrays["counts"]
    integers = ids.dtype.kind == counts.dtype.kind == "i"
    return bool(integers and counts.shape == (num_maps, len(ids)) and ((ids >= 0) & (ids < 256)).all())


def _of_label_space(kept: Arrays, dataset: SegmentationDataset, label_space: LabelSpace) -> ClassStatistics:
    classes = label_space.lookup_table(dataset.class_ids)[kept["ids"]]
    counts = [kept["counts"][:, classes == index].sum(axis=1) for index in range(label_space.num_classes)]
    return ClassStatistics(label_space.classes, np.stack(counts, axis=1))
