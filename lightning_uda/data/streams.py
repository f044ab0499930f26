"""Endless streams of training samples, each a pure function of (seed, stream, position).

Position counts the samples of a stream from the start of training: (batch number * world size + rank) * batch size +
slot. So the number of workers changes nothing, ranks never see the same position, and a run that resumes at batch n
sees what an uninterrupted run sees from there on.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_uda.data.datasets.base import DatasetError, SegmentationDataset
from lightning_uda.data.label_spaces import UNKNOWN_INDEX
from lightning_uda.data.transforms import TrainTransform

Sample = dict[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class LabelReader:
    """Reads the label maps of a dataset as train ids.

    Attributes:
        dataset: Where from.
        table: uint8 (256,), raw id to train id, `UNKNOWN_INDEX` for ids that must not occur.
    """

    dataset: SegmentationDataset
    table: npt.NDArray[np.uint8]

    def __call__(self, index: int) -> npt.NDArray[np.uint8]:
        """Label map `index`, uint8 (H, W) of train ids and 255.

        Raises:
            DatasetError: If the file holds an id that the dataset's class map doesn't list.
        """
        raw = self.dataset.load_label(index)
        mask = cast(npt.NDArray[np.uint8], cv2.LUT(raw, self.table))
        if self.dataset.strict_ids and (unknown := mask == UNKNOWN_INDEX).any():
            raise DatasetError(
                f"Label of {self.dataset.name(index)!r} holds ids {sorted(set(raw[unknown].tolist()))}, which are "
                f"not in the class map {dict(self.dataset.class_ids)}. Add them there (null for void)."
            )
        return mask


class Stream:
    """One named, endless, shuffled stream over a dataset.

    Every pass over the dataset has a permutation of its own.

    Args:
        name: Part of the random key, so that streams over the same dataset differ.
        dataset: Where images come from.
        transform: Geometry.
        seed: Part of the random key.
        label_reader: Gives label maps; `None` for an unlabelled stream, whose labels are never opened.
    """

    def __init__(
        self,
        name: str,
        dataset: SegmentationDataset,
        transform: TrainTransform,
        seed: int,
        label_reader: LabelReader | None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.key = (seed, zlib.crc32(name.encode()))
        self.label_reader = label_reader

    def index(self, position: int) -> int:
        """Which image of the dataset stands at a position."""
        pass_number, offset = divmod(position, len(self.dataset))
        return int(_permutation(self.key, pass_number, len(self.dataset))[offset])

    def sample(self, position: int) -> Sample:
        """The sample at a position: "image", uint8 (3, H, W), and, of a labelled stream, "mask", uint8 (H, W)."""
        index = self.index(position)
        image = self.dataset.load_image(index)
        mask = None if self.label_reader is None else self.label_reader(index)
        (transform_seed,) = np.random.SeedSequence((*self.key, 1, position)).generate_state(1)
        image, mask = self.transform(image, mask, int(transform_seed))
        sample = {"image": cast(npt.NDArray[np.uint8], np.stack(cv2.split(image)))}
        return sample if mask is None else {**sample, "mask": np.ascontiguousarray(mask)}


@lru_cache(maxsize=16)
def _permutation(key: tuple[int, int], pass_number: int, length: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((*key, 0, pass_number)).permutation(length)


class PairedStreams(IterableDataset[dict[str, dict[str, Tensor]]]):
    """Batches of all streams of a method, paired: {"source": {"image", "mask"}, "target": {"image"}, ...}.

    Worker w of W makes the batches w, w + W, ...; the loader asks its workers in turn, so that the order of the
    batches is that of one process.

    Args:
        streams: The streams by name.
        batch_size: Samples of each stream in a batch.
        first_batch: Number of the first batch; not 0 when a run resumes.
        rank: This process among the distributed ones.
        world_size: Number of distributed processes.
    """

    def __init__(
        self, streams: Mapping[str, Stream], batch_size: int, first_batch: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.streams = streams
        self.batch_size = batch_size
        self.first_batch = first_batch
        self.rank = rank
        self.world_size = world_size

    def positions(self, batch: int) -> range:
        """Stream positions of batch number `batch` on this rank."""
        start = (batch * self.world_size + self.rank) * self.batch_size
        return range(start, start + self.batch_size)

    def batch(self, number: int) -> dict[str, dict[str, Tensor]]:
        """Batch `number` of this rank."""
        return {
            name: collate(name, [stream.sample(position) for position in self.positions(number)])
            for name, stream in self.streams.items()
        }

    def __iter__(self) -> Iterator[dict[str, dict[str, Tensor]]]:
        """Endless batches, from `first_batch` on."""
        worker: Any = get_worker_info()
        offset, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number = self.first_batch + offset
        while True:
            yield self.batch(number)
            number += step


def collate(name: str, samples: list[Sample]) -> dict[str, Tensor]:
    """Stacks samples of one stream: images to uint8 (B, 3, H, W), masks to uint8 (B, H, W).

    Raises:
        DatasetError: If the images or the masks differ in size.
    """
    for key in samples[0]:
        sizes = {sample[key].shape[-2:] for sample in samples}
        if len(sizes) > 1:
            found = ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
            raise DatasetError(
                f"The {key}s of one {name} batch differ in size (height x width): {found}. Set `resize` or `crop` in "
                f"the transform of the {name} stream, or a batch size of 1 for evaluation."
            )
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}
