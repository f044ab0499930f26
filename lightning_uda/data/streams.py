"""Endless streams of training samples, each a pure function of (seed, stream, position).

Position counts the samples of a stream from the start of training: (batch number * world size + rank) * batch size +
slot. So the number of workers changes nothing, ranks never see the same position, and a run that resumes at batch n
sees what an uninterrupted run sees from there on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_uda.data.dataset import DatasetError, SegmentationDataset, UnreadableFileError
from lightning_uda.data.margins import VALID, Margins
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.label_spaces import IGNORE_INDEX, UNKNOWN_INDEX

Sample = dict[str, npt.NDArray[np.uint8]]

LEFT_OUT = "left_out"
"""Entry of a batch beside its streams, where files could not be read: the errors, each for a sample that another took
the place of."""

_SUBSTITUTES = 10
_FAR = 1 << 40  # positions on, which no training comes to


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
                f"{self.dataset.label_file(index)}: found ids {sorted(set(raw[unknown].tolist()))}, which are not in "
                f"the class map {dict(self.dataset.class_ids)}. Add them there (null for void), or mend the label."
            )
        return mask


class SampleStream(Protocol):
    """What `PairedStreams` draws from.

    Attributes:
        end: Position after the last sample; `None` for an endless stream. May move on between epochs.
    """

    @property
    def end(self) -> int | None: ...  # noqa: D102

    def sample(self, position: int) -> Sample:
        """The sample at a position, which may lie behind the end: arrays by name, the same whenever it is asked for."""
        ...


@runtime_checkable
class NamesImages(Protocol):
    """A stream that can say which image stands at a position."""

    def image_name(self, position: int) -> str:
        """Name of the image at a position."""
        ...


class Stream:
    """One named, endless, shuffled stream over a dataset.

    Every pass over the dataset has a permutation of its own.

    Args:
        name: Part of the random key, so that streams over the same dataset differ.
        dataset: Where images come from.
        transform: Geometry.
        seed: Part of the random key.
        label_reader: Gives label maps; `None` for an unlabelled stream, whose labels are never opened.
        margins: Of the images of an unlabelled stream; `None` where there are none.
    """

    end: ClassVar[int | None] = None

    def __init__(
        self,
        name: str,
        dataset: SegmentationDataset,
        transform: TrainTransform,
        seed: int,
        label_reader: LabelReader | None,
        margins: Margins | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.key = (seed, zlib.crc32(name.encode()))
        self.label_reader = label_reader
        self.margins = margins

    def index(self, position: int) -> int:
        """Which image of the dataset stands at a position."""
        pass_number, offset = divmod(position, len(self.dataset))
        return int(permutation((*self.key, 0, pass_number), len(self.dataset))[offset])

    def image_name(self, position: int) -> str:
        """Name of the image at a position."""
        return self.dataset.name(self.index(position))

    def sample(self, position: int) -> Sample:
        """The sample at a position; see `read_sample`."""
        key = (*self.key, 1, position)
        return read_sample(self.dataset, self.index(position), self.label_reader, self.transform, key, self.margins)


def read_sample(
    dataset: SegmentationDataset,
    index: int,
    label_reader: Callable[[int], npt.NDArray[np.uint8]] | None,
    transform: TrainTransform,
    key: tuple[int, ...],
    margins: Margins | None = None,
) -> Sample:
    """Image `index` and its label map, transformed as the random key says; see `crop_sample`."""
    mask = None if label_reader is None else label_reader(index)
    (transform_seed,) = np.random.SeedSequence(key).generate_state(1)
    return crop_sample(dataset, index, mask, transform, int(transform_seed), margins)


def crop_sample(
    dataset: SegmentationDataset,
    index: int,
    mask: npt.NDArray[np.uint8] | None,
    transform: TrainTransform,
    seed: int,
    margins: Margins | None = None,
) -> Sample:
    """Image `index` and its label map, uint8 (H, W), if any, transformed as a seed says.

    Returns:
        "image", uint8 (3, H, W), with its label map "mask", uint8 (H, W), or, of an image without one that has margins,
        "valid", uint8 (H, W), which is 1 but in the margins and in padding.

    Raises:
        DatasetError: If the image can't be read, or doesn't fit its label map; the message names its file.
    """
    image = dataset.load_image(index)
    void = None if mask is not None or margins is None else margins.void(transform.resize or image.shape[:2])
    try:
        image, label = transform(image, mask if void is None else void, seed)
    except DatasetError as error:
        raise DatasetError(f"{dataset.image_file(index)}: {error}") from error
    sample = {"image": cast(npt.NDArray[np.uint8], np.stack(cv2.split(image)))}
    if label is None:
        return sample
    if void is not None:
        return {**sample, VALID: (label != IGNORE_INDEX).view(np.uint8)}
    return {**sample, "mask": np.ascontiguousarray(label)}


@lru_cache(maxsize=16)
def permutation(key: tuple[int, ...], length: int) -> npt.NDArray[np.int64]:
    """Random order of 0..length - 1, the same for the same key."""
    return np.random.default_rng(key).permutation(length)


class PairedStreams(IterableDataset[dict[str, Any]]):
    """Batches of all streams of a method, paired: {"source": {"image", "mask"}, "target": {"image"}, ...}.

    Worker w of W makes the batches w, w + W, ...; the loader asks its workers in turn, so that the order of the
    batches is that of one process.

    Args:
        streams: The streams by name. Batches end where the first of them does, on all ranks alike.
        batch_size: Samples of each stream in a batch.
        first_batch: Number of the first batch; not 0 when a run resumes.
        rank: This process among the distributed ones.
        world_size: Number of distributed processes.
        leave_out_unreadable: Whether another sample of the stream, the same one whenever it is asked for, takes the
            place of one whose file can't be read; the batch then has the entry `LEFT_OUT`.
    """

    def __init__(
        self,
        streams: Mapping[str, SampleStream],
        batch_size: int,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        leave_out_unreadable: bool = False,
    ) -> None:
        self.streams = streams
        self.batch_size = batch_size
        self.first_batch = first_batch
        self.rank = rank
        self.world_size = world_size
        self.leave_out_unreadable = leave_out_unreadable

    def positions(self, batch: int) -> range:
        """Stream positions of batch number `batch` on this rank."""
        start = (batch * self.world_size + self.rank) * self.batch_size
        return range(start, start + self.batch_size)

    def batch(self, number: int) -> dict[str, Any]:
        """Batch `number` of this rank.

        Raises:
            DatasetError: If a file can't be read, or, where such are left out, none of 10 samples in its place.
        """
        left_out: list[str] = []
        batch: dict[str, Any] = {
            name: collate(name, [self._sample(stream, position, left_out) for position in self.positions(number)])
            for name, stream in self.streams.items()
        }
        return {**batch, LEFT_OUT: left_out} if left_out else batch

    def _sample(self, stream: SampleStream, position: int, left_out: list[str], tried: int = 0) -> Sample:
        try:
            return stream.sample(position)
        except UnreadableFileError as error:
            if not self.leave_out_unreadable or tried == _SUBSTITUTES:
                raise
            left_out.append(str(error))
        return self._sample(stream, position + _FAR, left_out, tried + 1)

    def images(self, number: int) -> dict[str, list[str]]:
        """Names of the images of batch `number` by stream; positions where a stream can't say them."""

        def names(stream: SampleStream) -> list[str]:
            name = stream.image_name if isinstance(stream, NamesImages) else "position {}".format
            return [name(position) for position in self.positions(number)]

        return {name: names(stream) for name, stream in self.streams.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches from `first_batch` on, endless if all streams are."""
        worker: Any = get_worker_info()
        offset, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        number = self.first_batch + offset
        while not self._ended(number):
            yield self.batch(number)
            number += step

    def _ended(self, number: int) -> bool:
        stop = (number + 1) * self.world_size * self.batch_size
        return any(stream.end is not None and stop > stream.end for stream in self.streams.values())


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
