"""Which pixels of an image are pasted onto another: the masks that mixing methods can be given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.mixing.class_mix import (
    choose_from_pool,
    class_mix,
    class_presence,
    indexable,
    paste_mask_of,
    preceding,
)
from lightning_uda.ranges import CLASS_ID, ranged


class PasteMask(ABC):
    """Chooses the pixels of each image that are pasted."""

    @abstractmethod
    def __call__(self, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Paste masks of a batch.

        Args:
            mask: Label maps of the images pasted from, (N, H, W) of values in 0-255, of any integer type.
            generator: Source of randomness, on the CPU.

        Returns:
            bool (N, H, W); true where the image is to be pasted.
        """


class ClassMask(PasteMask):
    """The pixels of half of each image's classes (ClassMix, and DACS's default).

    Args:
        include_ignore: Whether void counts as a class that may be pasted, as in DACS's published program; without it
            an image that holds nothing but void gives an empty mask.
        of_batch: Whether each image's classes are half of those of the whole batch, of which it may lack some
            (DAFormer's program).
    """

    def __init__(self, include_ignore: bool = True, of_batch: bool = False) -> None:
        self.include_ignore = include_ignore
        self.of_batch = of_batch

    def __call__(self, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `class_mix`."""
        return class_mix(mask, generator, include_ignore=self.include_ignore, of_batch=self.of_batch)


class ClassPool(PasteMask):
    """The pixels of half of each image's classes that belong to a pool, rounded down but at least one (EHTDI's CMix).

    The pool is all classes but the excluded ones, by default those that fill most of a street scene; void is never
    pasted. An image without a class of the pool gives an empty mask.

    Args:
        excluded: Train ids that are never chosen; road, sidewalk, building, wall and fence in the paper's spaces.
        offset_bug: Pastes in place of each chosen class the one before it among the image's labels, void first, as
            the published program does by an index that is one too low: an excluded class or void may be pasted, and
            the last class is not, unless no label comes before the pool.
    """

    @ranged(excluded=CLASS_ID)
    def __init__(self, excluded: Sequence[int] = (0, 1, 2, 3, 4), offset_bug: bool = False) -> None:
        self.offset_bug = offset_bug
        self.pool = torch.ones(IGNORE_INDEX + 1, dtype=torch.bool)
        self.pool[[*excluded, IGNORE_INDEX]] = False

    def __call__(self, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Masks of the chosen classes, bool (N, H, W)."""
        mask = indexable(mask)  # once for both
        presence = class_presence(mask)
        chosen = choose_from_pool(presence, self.pool.to(mask.device, non_blocking=True), generator)
        return paste_mask_of(mask, preceding(chosen, presence) if self.offset_bug else chosen)


class BoxMask(PasteMask):
    """One box of half the image's area per image, as CutMix's (the box masks of DACS's program).

    Its width is uniform in [W / 2, W], its height H * W / 2 divided by the width, its place uniform; all rounded to
    pixels.
    """

    def __call__(self, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Boxes, bool (N, H, W); only the shape of `mask` is used."""
        count, height, width = mask.shape
        draws = torch.rand((3, count, 1, 1), generator=generator, dtype=torch.float32).to(
            mask.device, non_blocking=True
        )
        box_width = (width * (1 + draws[0]) / 2).round()
        box_height = (height * width / 2 / box_width).round()
        top = (draws[1] * (height - box_height + 1)).floor()
        left = (draws[2] * (width - box_width + 1)).floor()
        rows = torch.arange(height, device=mask.device).view(1, -1, 1)
        columns = torch.arange(width, device=mask.device).view(1, 1, -1)
        in_rows = (rows >= top) & (rows < top + box_height)
        return in_rows & (columns >= left) & (columns < left + box_width)
