"""MiniCity as a dataset, its images and labels drawn when they are loaded."""

from __future__ import annotations

from operator import index as as_index
from typing import Literal

import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import SegmentationDataset
from lightning_uda.datasets.minicity.photography import photograph
from lightning_uda.datasets.minicity.scene import draw_scene
from lightning_uda.datasets.minicity.style import STYLES
from lightning_uda.label_spaces import TRAIN_IDS
from lightning_uda.ranges import COUNT, SEED, SIDE, ranged

SPLITS = ("train", "val", "test")
MIN_SIZE = (16, 32)
"""Smallest (height, width) in pixels that still shows a street."""

Array = npt.NDArray[np.uint8]


class MiniCity(SegmentationDataset):
    """Street scenes drawn on the fly, in two styles: an embedded benchmark of domain adaptation without any file.

    The scenes hold all 19 Cityscapes classes with a long tail like Cityscapes' (a tram in about one scene in ten).
    `source` looks like a computer game; `target` like a photograph of another town: other layout, other colours,
    texture, haze, shadows, blur and noise. `style.py` holds every strength of that gap.

    Image `i` is a pure function of (seed, split, style, i); splits share no scene, nor do styles. Neither the order of
    calls nor whether labels are loaded changes anything.

    Args:
        split: "train", "val" or "test".
        style: "source" or "target".
        length: Number of images.
        size: (height, width) of the images in pixels, at least (16, 32).
        seed: Any non-negative integer; another seed gives another benchmark.

    Raises:
        ValueError: If an argument is outside its range.
    """

    class_ids = TRAIN_IDS

    @ranged(length=COUNT, size=SIDE, seed=SEED)
    def __init__(
        self,
        split: Literal["train", "val", "test"] = "train",
        style: Literal["source", "target"] = "source",
        length: int = 1000,
        size: tuple[int, int] = (128, 256),
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"MiniCity: found split {split!r}, expected one of {', '.join(SPLITS)}.")
        if style not in STYLES:
            raise ValueError(f"MiniCity: found style {style!r}, expected one of {', '.join(STYLES)}.")
        if len(size) != 2 or size[0] < MIN_SIZE[0] or size[1] < MIN_SIZE[1]:
            raise ValueError(f"MiniCity: found size {size}, expected (height, width) in pixels, at least {MIN_SIZE}.")
        self.split, self.style, self.length, self.size, self.seed = split, style, length, (size[0], size[1]), seed
        self._last: tuple[int, Array, Array] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return self.length

    def name(self, index: int) -> str:
        """Name of an image, such as "target_val_000012"."""
        return f"{self.style}_{self.split}_{self._checked(index):06d}"

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width, the same for all images."""
        return self.size

    def load_image(self, index: int) -> Array:
        """Image `index` as uint8 (H, W, 3), RGB."""
        return self._render(index)[0].copy()

    def load_label(self, index: int) -> Array:
        """Label map of image `index` as uint8 (H, W) of Cityscapes train ids, 255 for void."""
        return self._render(index)[1].copy()

    def _checked(self, index: int) -> int:
        index = as_index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"MiniCity: found index {index}, expected 0 to {self.length - 1}.")
        return index

    def _render(self, index: int) -> tuple[Array, Array]:
        """Image and label; the last pair is kept, so that asking for both draws once."""
        index = self._checked(index)
        last = self._last
        if last is None or last[0] != index:
            key = (self.seed, SPLITS.index(self.split), list(STYLES).index(self.style), index)
            rng = np.random.default_rng(np.random.SeedSequence(key))
            style = STYLES[self.style]
            image, label = draw_scene(rng, style, self.size)
            last = self._last = index, photograph(image, label, style.photography, rng), label
        return last[1], last[2]
