"""The spatial prior of a labelled dataset, counted once and kept on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from lightning_uda.data.counts import Arrays, counts_folder, load_or_count
from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.files import parallel_map
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.resize import resize_label
from lightning_uda.self_training.prior import Normalization, count_positions, prior_from_counts

_VERSION = 1  # to be raised when counting changes


def load_or_count_prior(
    dataset: SegmentationDataset,
    label_space: LabelSpace,
    cache_dir: str | Path | None,
    size: tuple[int, int],
    radius: int = 35,
    sigma: float = 35 / 3,
    over: Normalization = "pixels",
    workers: int | None = None,
    progress: bool = True,
) -> Tensor:
    """Spatial prior of a labelled dataset: read from counts on disk if there are any, else counted and kept.

    The file holds counts, not the prior, so it serves any smoothing. A missing, damaged or foreign file is counted
    again. Where none can be written, there is a warning.

    Args:
        dataset: Any labelled dataset; the source.
        label_space: The classes wanted.
        cache_dir: Folder of the file; `None` takes the user's (`counts_folder`).
        size: Height and width to which all label maps are resized (nearest neighbour) before counting; the usual size
            of the source's images, or less to save time.
        radius: As in `smooth`, in pixels of `size`.
        sigma: As in `smooth`, in pixels of `size`.
        over: As in `normalise`.
        workers: Threads; `None` takes Python's default for the machine.
        progress: Whether to show a progress bar on stderr.

    Returns:
        float32 (C, *size).

    Raises:
        DatasetError: If the dataset has no labels, or none of these classes, or a label can't be read.
    """
    if not dataset.has_labels:
        raise DatasetError(
            f"{type(dataset).__name__}: a spatial prior needs labels, but this dataset was made without. Count it on "
            "the source, with its label folder."
        )
    table = label_space.lookup_table(dataset.class_ids)
    shape = (label_space.num_classes, *size)
    content = (_VERSION, dataset.fingerprint(), shape, table.tobytes())
    key = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    path = counts_folder(cache_dir) / f"{type(dataset).__name__}-positions-{size[0]}x{size[1]}-{key}.npz"

    def count() -> Arrays:
        return {"counts": _count(dataset, torch.from_numpy(table), shape, workers, progress).numpy()}

    def fits(arrays: Arrays) -> bool:
        found = arrays["counts"]
        return found.dtype == np.int32 and found.shape == shape and 0 <= found.min() <= found.max() <= len(dataset)

    kept = load_or_count(path, fits, count, "the counts of the spatial prior")
    counts = torch.from_numpy(kept["counts"])
    if not counts.any():
        raise DatasetError(
            f"{type(dataset).__name__}: found no pixel of {', '.join(label_space.classes)} in {len(dataset)} label "
            "maps; a spatial prior needs some. Look at the dataset's class ids and the label space."
        )
    return prior_from_counts(counts, len(dataset), radius, sigma, over)


def _count(
    dataset: SegmentationDataset, table: Tensor, shape: tuple[int, int, int], workers: int | None, progress: bool
) -> Tensor:
    num_classes, height, width = shape
    counts = torch.zeros(num_classes + 1, height, width, dtype=torch.int32)
    turn = Lock()

    def count(index: int) -> None:
        label = table[torch.from_numpy(resize_label(dataset.load_label(index), (height, width))).long()]
        with turn:
            count_positions(counts, label)

    title = f"Counting positions in {len(dataset)} label maps"
    parallel_map(count, range(len(dataset)), title, workers, progress)
    return counts[:num_classes]
