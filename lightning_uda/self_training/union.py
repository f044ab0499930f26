"""Data of self-training in rounds: the plan of the rounds, the union stream and the spatial prior (CBST)."""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.data.streams import Sample, permutation, read_sample
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.self_training.prior import Normalization
from lightning_uda.self_training.prior_counts import load_or_count_prior

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RoundPlan:
    """Which optimiser steps belong to which round; rounds count from 0.

    Attributes:
        first_steps: First step of each round and, as the last entry, the number of all steps.
        images_per_step: Images in an optimiser step, over all processes and accumulated batches.
    """

    first_steps: tuple[int, ...]
    images_per_step: int

    @classmethod
    def of(cls, union_sizes: Sequence[int], epochs_per_round: int, images_per_step: int) -> RoundPlan:
        """Plans rounds in which every image is shown `epochs_per_round` times.

        The last step of a round is filled up from a further pass over its images.

        Args:
            union_sizes: Number of source and target images of each round.
            epochs_per_round: Passes over them.
            images_per_step: As in the attribute.
        """
        steps = [math.ceil(size * epochs_per_round / images_per_step) for size in union_sizes]
        return cls(tuple(int(step) for step in np.cumsum([0, *steps])), images_per_step)

    @property
    def num_rounds(self) -> int:
        """Number of rounds."""
        return len(self.first_steps) - 1

    @property
    def num_steps(self) -> int:
        """Number of steps of all rounds."""
        return self.first_steps[-1]

    def round_of(self, step: int) -> int:
        """The round of a step; that of the last one for steps after it."""
        return min(bisect_right(self.first_steps, step), self.num_rounds) - 1

    def positions(self, round_number: int) -> tuple[int, int]:
        """Stream positions of a round: the first, and the one after the last."""
        first, end = self.first_steps[round_number : round_number + 2]
        return first * self.images_per_step, end * self.images_per_step


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

    def sample(self, position: int) -> Sample:
        """The sample at a position.

        Returns:
            "image", uint8 (3, H, W); "mask", uint8 (H, W) of train ids or pseudo-labels; "is_target", uint8 scalar.
        """
        num_target, num_source = len(self.target.indices), len(self.source.indices)
        pass_number, offset = divmod(position - self.start, num_target + num_source)
        place = int(permutation((*self.key, 0, pass_number), num_target + num_source)[offset])
        is_target = place < num_target
        part, place = (self.target, place) if is_target else (self.source, place - num_target)
        key = (*self.key, 1, position)
        sample = read_sample(part.dataset, part.indices[place], part.label_reader, part.transform, key)
        return {**sample, "is_target": np.array(is_target, np.uint8)}


class SpatialPrior:
    """Weighs scores by where the source has each class ("-SP" of CBST); see `lightning_uda.pseudo_labels`.

    Args:
        size: Height and width at which source labels are counted; the usual size of the source's images.
        radius: Of the Gaussian kernel, in pixels of `size`.
        sigma: Of the Gaussian kernel, in pixels of `size`.
        over: "pixels" or "classes": over what the prior sums to 1.
    """

    def __init__(
        self,
        size: tuple[int, int] = (1052, 1914),
        radius: int = 35,
        sigma: float = 35 / 3,
        over: Normalization = "pixels",
    ) -> None:
        self.size = size
        self.radius = radius
        self.sigma = sigma
        self.over: Normalization = over

    def of(self, data: UDADataModule) -> Tensor:
        """The prior of `data.source`, float32 (C, *size); counted once and kept on disk.

        Raises:
            DatasetError: If the source has no labels, or one can't be read.
        """
        if data.source is None:
            raise DatasetError("data.source isn't set, but a spatial prior is counted on its labels.")
        size = self.size[0], self.size[1]
        return load_or_count_prior(
            data.source, data.label_space, data.cache_dir, size, self.radius, self.sigma, self.over
        )
