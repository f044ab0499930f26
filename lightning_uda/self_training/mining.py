"""Training crops around pixels of rare classes (CBST's mining)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_uda.data.transforms import TrainTransform, UInt8
from lightning_uda.ranges import CLASS_ID, COUNT_OR_NONE, SHARE, ranged
from lightning_uda.resize import Size
from lightning_uda.self_training.scaled_crop import ScaledCrop

Centres = Literal["all", "inside"]


class RareClassMining:
    """Which crops are put around rare classes (CBST, section 4.2); a round's callback turns it into a transform.

    Args:
        probability: Share of the samples whose crop is mined; 0.8 in the published programs, unnamed in the paper.
        share: Classes predicted at less than this share of the pixels have priority.
        num_rarest: Number of classes in the fallback set, the least predicted.
        fallback: Whether a class of the fallback set is taken where none of priority is present (MXNet program; neither
            the paper nor the PyTorch program).
        source: Whether source crops are mined too, by their ground truth (MXNet program).
        centres: "all": any pixel may be the centre, and the crop is shifted back inside the image (PyTorch program).
            "inside": only pixels around which the whole crop fits (MXNet program).

    Raises:
        ValueError: If the probability or the share isn't within 0-1, or the number is negative.
    """

    @ranged(probability=SHARE, share=SHARE, num_rarest=COUNT_OR_NONE)
    def __init__(
        self,
        probability: float = 0.8,
        share: float = 0.001,
        num_rarest: int = 3,
        fallback: bool = True,
        source: bool = False,
        centres: Centres = "all",
    ) -> None:
        self.probability = probability
        self.share = share
        self.num_rarest = num_rarest
        self.fallback = fallback
        self.source = source
        self.centres: Centres = centres

    def classes(self, counts: Tensor | npt.NDArray[np.int64]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Priority and fallback set; see `mining_classes`."""
        priority, rarest = mining_classes(counts, self.share, self.num_rarest)
        return priority, rarest if self.fallback else ()

    def transform(self, base: TrainTransform, priority: tuple[int, ...], fallback: tuple[int, ...]) -> MinedCrop:
        """The transform of a round.

        Args:
            base: What the stream used so far.
            priority: Classes that are taken where one is present.
            fallback: Classes that are taken where none of those is present.

        Raises:
            ValueError: If `base` isn't a `ScaledCrop`.
        """
        if not isinstance(base, ScaledCrop):
            raise ValueError(
                f"RareClassMining: found a {type(base).__name__} as the stream's transform; expected a ScaledCrop, "
                "whose crops it places. Set `class_path: ScaledCrop` in the data config, or `mining: null`."
            )
        return MinedCrop(base, priority, fallback, self.probability, self.centres)


class MinedCrop(ScaledCrop):
    """A `ScaledCrop` that centres most of its crops on a pixel of a rare class.

    One of the candidate classes is drawn evenly, then one of its pixels. Where the label map holds none of them, or
    there is no label map, the crop is a plain one.

    Args:
        base: Sizes, scales and the rest.
        priority: Classes that are taken where one is present.
        fallback: Classes that are taken where none of those is present.
        probability: Share of the samples that are mined.
        centres: See `RareClassMining`.
    """

    @ranged(priority=CLASS_ID, fallback=CLASS_ID, probability=SHARE)
    def __init__(
        self,
        base: ScaledCrop,
        priority: tuple[int, ...],
        fallback: tuple[int, ...],
        probability: float = 0.8,
        centres: Centres = "all",
    ) -> None:
        super().__init__(
            base.crop, base.scale, base.scale_step, base.horizontal_flip, base.resize, base.interpolation, base.fill
        )
        self.priority = priority
        self.fallback = fallback
        self.probability = probability
        self.centres: Centres = centres

    def place(self, generator: np.random.Generator, label: UInt8 | None, size: Size, region: Size) -> tuple[int, int]:
        """Top and left of the region; see `ScaledCrop.place`."""
        mined = generator.random() < self.probability
        seed = self._seed_pixel(generator, label, region) if mined and label is not None else None
        return super().place(generator, label, size, region) if seed is None else clamped_offset(seed, size, region)

    def _seed_pixel(self, generator: np.random.Generator, label: UInt8, region: Size) -> tuple[int, int] | None:
        height, width = label.shape
        rows, columns = (0, height), (0, width)
        if self.centres == "inside":
            rows, columns = admissible_centres((height, width), region)
        window = label[slice(*rows), slice(*columns)]
        candidates = mining_candidates(window, self.priority, self.fallback)
        if not candidates:
            return None
        pixels = np.flatnonzero(window == generator.choice(candidates))
        row, column = divmod(int(generator.choice(pixels)), window.shape[1])
        return rows[0] + row, columns[0] + column


def mining_classes(
    counts: Tensor | npt.NDArray[np.int64], share: float = 0.001, num_rarest: int = 3
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rare classes by the number of pixels predicted as each.

    Args:
        counts: int64 (C,), all pixels of the target set; the same under ST and CBST.
        share: Classes below this share of the pixels have priority, never predicted ones included.
        num_rarest: Number of classes in the fallback set.

    Returns:
        The priority set, ascending, and the fallback set, rarest first and the lower class first among equals.
    """
    counts = torch.as_tensor(counts).cpu()
    rare = counts.double() < share * counts.sum()
    return tuple(rare.nonzero().flatten().tolist()), tuple(counts.argsort(stable=True)[:num_rarest].tolist())


def mining_candidates(window: UInt8, priority: tuple[int, ...], fallback: tuple[int, ...]) -> tuple[int, ...]:
    """The classes that a crop may be put around: those of priority that are present, else those of the fallback set.

    Args:
        window: Labels of the pixels that may be the centre, uint8 (h, w).
        priority: Taken where one is present.
        fallback: Taken where none of `priority` is present.

    Returns:
        Classes, ascending; empty if none is present.
    """
    present = set(np.flatnonzero(np.bincount(window.ravel(), minlength=256)).tolist())
    return tuple(sorted(present & set(priority) or present & set(fallback)))


def admissible_centres(size: Size, region: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows [start, stop) and columns [start, stop) around which a region fits; stop <= start if there are none.

    Args:
        size: Height and width of the image.
        region: Height and width of the region.
    """
    rows, columns = ((want // 2, max(have - want // 2 - 1, 0)) for have, want in zip(size, region, strict=True))
    return rows, columns


def clamped_offset(centre: tuple[int, int], size: Size, region: Size) -> tuple[int, int]:
    """Top and left of the region around a pixel, shifted back inside the image.

    Args:
        centre: Row and column.
        size: Height and width of the image.
        region: Height and width of the region.
    """
    top, left = (max(min(at - want // 2, have - want), 0) for at, have, want in zip(centre, size, region, strict=True))
    return top, left
