"""Several datasets as one: several sources, or several targets, at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import DatasetError, Problem, SegmentationDataset, SizeLimit
from lightning_uda.label_spaces import IGNORE_INDEX, UNKNOWN_INDEX

UInt8 = npt.NDArray[np.uint8]


class Concat(SegmentationDataset):
    """The images of several datasets, one set after the other, with their classes put together by name.

    Raw ids of each set become ids of all classes that any of them names. Names of images begin with the number of
    their set, as in "0_aachen_000000", so that no two are alike. A pass over the data shows every image once; the
    sampling `WeightedParts` draws from the sets by shares of your choice.

    Args:
        datasets: The sets, at least one; with labels, or all without.

    Raises:
        ValueError: If there is no set, or some have labels and others don't.
    """

    def __init__(self, datasets: Sequence[SegmentationDataset]) -> None:
        labelled = [dataset.has_labels for dataset in datasets]
        if not datasets or len(set(labelled)) > 1:
            found = "no dataset" if not datasets else f"labels in {sum(labelled)} of {len(datasets)} datasets"
            raise ValueError(f"Concat: found {found}, expected at least one, and labels in all of them or in none.")
        self.datasets = tuple(datasets)
        self.has_labels = labelled[0]
        self.sizes_may_differ = any(dataset.sizes_may_differ for dataset in datasets)
        maps = [dataset.class_ids if dataset.has_labels else {} for dataset in datasets]
        names = list(dict.fromkeys(name for class_ids in maps for name in class_ids.values() if name is not None))
        if len(names) >= UNKNOWN_INDEX:
            raise ValueError(f"Concat: found {len(names)} classes, expected fewer than {UNKNOWN_INDEX}.")
        self.class_ids = {**dict(enumerate(names)), IGNORE_INDEX: None}
        self._tables = [_table(dataset, names) for dataset in datasets]
        self._ends = np.cumsum([len(dataset) for dataset in datasets])

    @property
    def sets(self) -> tuple[SegmentationDataset, ...]:
        """All sets; of one that was put together itself, those that it is of."""
        return tuple(part for dataset in self.datasets for part in dataset.sets)

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of images of each set."""
        return tuple(len(dataset) for dataset in self.datasets)

    @property
    def size_limit(self) -> SizeLimit:
        """How large files may be, in all sets."""
        return self.datasets[0].size_limit

    @size_limit.setter
    def size_limit(self, limit: SizeLimit) -> None:
        for dataset in self.datasets:
            dataset.size_limit = limit

    def __len__(self) -> int:
        """Number of images of all sets."""
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        """Number of the set, and name of the image in it."""
        number, dataset, inside = self._place(index)
        return f"{number}_{dataset.name(inside)}"

    def load_image(self, index: int) -> UInt8:
        """Image `index` as uint8 (H, W, 3), RGB."""
        _, dataset, inside = self._place(index)
        return dataset.load_image(inside)

    def load_label(self, index: int) -> UInt8:
        """Label map of image `index` as uint8 (H, W) of ids of all classes.

        Raises:
            DatasetError: If it holds an id that its set, which is strict about them, doesn't list.
        """
        number, dataset, inside = self._place(index)
        raw = dataset.load_label(inside)
        label = np.asarray(cv2.LUT(raw, self._tables[number]), dtype=np.uint8)
        if dataset.strict_ids and (unknown := label == UNKNOWN_INDEX).any():
            raise DatasetError(
                f"{self.label_file(index)}: found ids {sorted(set(raw[unknown].tolist()))}, which are not in the class "
                f"map {dict(dataset.class_ids)}. Add them there (null for void), or mend the label."
            )
        return label

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of image `index`."""
        _, dataset, inside = self._place(index)
        return dataset.image_size(inside)

    def image_file(self, index: int) -> str:
        """Path of the file of image `index`, for messages."""
        _, dataset, inside = self._place(index)
        return dataset.image_file(inside)

    def label_file(self, index: int) -> str:
        """Path of the label map of image `index`, for messages."""
        _, dataset, inside = self._place(index)
        return dataset.label_file(inside)

    def check(self, labels: bool = True) -> list[Problem]:
        """Problems of all sets."""
        return [problem for dataset in self.datasets for problem in dataset.check(labels)]

    def remarks(self) -> list[Problem]:
        """Remarks on all sets."""
        return [remark for dataset in self.datasets for remark in dataset.remarks()]

    def fingerprint(self, labels: bool = True) -> str:
        """Key of the content of all sets."""
        keys = [dataset.fingerprint(labels) for dataset in self.datasets]
        return hashlib.sha256(repr(("Concat", keys)).encode()).hexdigest()[:16]

    def _place(self, index: int) -> tuple[int, SegmentationDataset, int]:
        """Number of the set that an image is in, the set, and the image's index there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        dataset = self.datasets[number]
        return number, dataset, index - int(self._ends[number]) + len(dataset)


def _table(dataset: SegmentationDataset, names: Sequence[str]) -> UInt8:
    """uint8 (256,): the id among all classes of each raw id of a set."""
    table = np.full(256, UNKNOWN_INDEX if dataset.strict_ids else IGNORE_INDEX, np.uint8)
    if dataset.has_labels:
        for raw, name in dataset.class_ids.items():
            table[raw] = IGNORE_INDEX if name is None else names.index(name)
    return table
