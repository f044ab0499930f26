"""The training stream of a round: target images with pseudo-labels and source images, shuffled together (CBST)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import SegmentationDataset
from lightning_uda.data.streams import Sample, permutation, read_sample
from lightning_uda.data.transforms import TrainTransform

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class UnionPart:
    """Images of one domain in a round.

    Attributes:
        dataset: Where images come from.
        label_reader: Gives their label maps.
        transform: Geometry.
        indices: Which images of the dataset.
    """

    dataset: SegmentationDataset
    label_reader: Callable[[int], UInt8]
    transform: TrainTransform
    indices: Sequence[int]


class UnionStream:
    """Shuffled union of target images with pseudo-labels and source images, for one round.

    Every pass shows each image once, in an order of its own. A sample is a function of seed, round and position; the
    positions of a round follow those of the round before.

    Args:
        target: The target images.
        source: The source images.
        seed: Part of the random key.
        round_number: Part of the random key.
        positions: The round's first position, and the one after its last.
    """

    def __init__(
        self, target: UnionPart, source: UnionPart, seed: int, round_number: int, positions: tuple[int, int]
    ) -> None:
        self.target = target
        self.source = source
        self.key = (seed, zlib.crc32(b"union"), round_number)
        self.start, self.end = positions

    @classmethod
    def ended(cls, part: UnionPart) -> UnionStream:
        """A stream that has come to its end, for a run with nothing left to train."""
        return cls(part, part, 0, 0, (0, 0))

    def draw(self, position: int) -> tuple[UnionPart, int]:
        """The domain and the image index of a position."""
        num_target, num_source = len(self.target.indices), len(self.source.indices)
        pass_number, offset = divmod(position - self.start, num_target + num_source)
        place = int(permutation((*self.key, 0, pass_number), num_target + num_source)[offset])
        part, place = (self.target, place) if place < num_target else (self.source, place - num_target)
        return part, part.indices[place]

    def image_name(self, position: int) -> str:
        """Name of the image at a position."""
        part, index = self.draw(position)
        return part.dataset.name(index)

    def sample(self, position: int) -> Sample:
        """The sample at a position.

        Returns:
            "image", uint8 (3, H, W); "mask", uint8 (H, W) of train ids or pseudo-labels; "is_target", uint8 scalar.
        """
        part, index = self.draw(position)
        sample = read_sample(part.dataset, index, part.label_reader, part.transform, (*self.key, 1, position))
        return {**sample, "is_target": np.array(part is self.target, np.uint8)}
