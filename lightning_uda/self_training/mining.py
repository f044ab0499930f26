"""Training crops of self-training: scale jitter, and crops around pixels of rare classes (CBST's mining)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_uda.data.transforms import TrainTransform, UInt8
from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.resize import Interpolation, resize_image, resize_label

Centres = Literal["all", "inside"]
Size = tuple[int, int]


class ScaledCrop(TrainTransform):
    """Random scale, random crop and random mirroring of a training image and its label map.

    The region that fills the crop is cut from the image first and resized afterwards, as CBST's MXNet program does it.
    Its PyTorch program resizes the whole image first, which shows the same up to a fraction of a pixel but takes
    two to three times as long. Images smaller than the region are padded at the bottom and on the right.

    The recipes: crop (504, 504), scale (0.7, 1.3) for ResNet-38; crop (512, 1024), scale (0.5, 1.5), step 0.1 for
    DeepLab. The programs' Lanczos filter for shrinking is here the one `interpolation`, antialiased.

    Args:
        crop: Height and width of what is given to the network.
        scale: Smallest and largest magnification, drawn evenly.
        scale_step: Draws from the grid smallest, smallest + step, ..., largest; `None` draws any number between.
        mirror: Probability of mirroring. A name of its own: a config would hand down `TrainTransform.horizontal_flip`.
        resize: Height and width before scaling; `None` keeps the size of the file.
        interpolation: For the image, "bilinear" or "bicubic"; label maps take the nearest pixel.
        fill: RGB of the padding, 0-255; by default ImageNet's mean, which is about 0 after normalisation. Its labels
            are 255.

    Raises:
        ValueError: If the scales aren't positive and ascending, or the step doesn't lead from one to the other.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        scale: tuple[float, float] = (0.7, 1.3),
        scale_step: float | None = None,
        mirror: float = 0.5,
        resize: tuple[int, int] | None = None,
        interpolation: Interpolation = "bilinear",
        fill: tuple[int, int, int] = (124, 116, 104),
    ) -> None:
        super().__init__(resize, interpolation)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"ScaledCrop: found scale={tuple(scale)}; expected 0 < smallest <= largest.")
        self.crop = crop
        self.scale = scale
        self.scale_step = scale_step
        self.grid = None if scale_step is None else _scale_grid(scale, scale_step)
        self.mirror = mirror
        self.fill = fill

    def __call__(self, image: UInt8, label: UInt8 | None, seed: int) -> tuple[UInt8, UInt8 | None]:
        """Transforms one sample; everything drawn is a function of the seed (and, when mining, of the label map).

        Args:
            image: uint8 (H, W, 3).
            label: uint8 (H', W'), which may differ in size if `resize` is set, or `None`.
            seed: Non-negative seed.

        Returns:
            The image, uint8 (*crop, 3), and the label map, uint8 crop, or `None`.
        """
        if self.resize is not None:
            image = resize_image(image, self.resize, self.interpolation)
            label = None if label is None else resize_label(label, self.resize)
        generator = np.random.default_rng(seed)
        scale = generator.uniform(*self.scale) if self.grid is None else generator.choice(self.grid)
        flip = generator.random() < self.mirror
        height, width = (max(1, round(side / scale)) for side in self.crop)
        top, left = self.place(generator, label, (image.shape[0], image.shape[1]), (height, width))
        cut = (slice(top, top + height), slice(left, left + width))
        image = self._fit(image[cut], (height, width))
        label = None if label is None else self._fit(label[cut], (height, width))
        if flip:
            image, label = _mirror(image), None if label is None else _mirror(label)
        return image, label

    def place(self, generator: np.random.Generator, label: UInt8 | None, size: Size, region: Size) -> tuple[int, int]:
        """Top and left of the region, drawn evenly.

        Args:
            generator: Source of randomness.
            label: uint8 (H, W), for subclasses that look at it.
            size: Height and width of the image.
            region: Height and width of the region.
        """
        top, left = (int(generator.integers(max(have - want, 0) + 1)) for have, want in zip(size, region, strict=True))
        return top, left

    def _fit(self, part: UInt8, region: Size) -> UInt8:
        """Brings what lies in the image of a region, (h, w) or (h, w, 3), to the crop, with padding for the rest."""
        height, width = (
            min(want, max(1, round(have * want / full)))
            for have, want, full in zip(part.shape, self.crop, region, strict=False)
        )
        is_label = part.ndim == 2
        if is_label:
            part = resize_label(part, (height, width))
        else:
            part = resize_image(part, (height, width), self.interpolation)
        if (height, width) == tuple(self.crop):
            return part
        fitted = np.full((*self.crop, *part.shape[2:]), IGNORE_INDEX if is_label else self.fill, np.uint8)
        fitted[:height, :width] = part
        return fitted


class RareClassMining:
    """Which crops look for rare classes (CBST, section 4.2); a round's callback turns it into a transform.

    Args:
        probability: Share of the samples whose crop is mined; 0.8 in the published programs, unnamed in the paper.
        share: Classes predicted at less than this share of the pixels have priority.
        num_rarest: Number of classes in the fallback set, the least predicted.
        fallback: Whether crops look for the fallback set where no class of priority is present (MXNet program; neither
            the paper nor the PyTorch program).
        source: Whether source crops are mined too, by their ground truth (MXNet program).
        centres: "all": any pixel may be the centre, and the crop is shifted back inside the image (PyTorch program).
            "inside": only pixels around which the whole crop fits (MXNet program).

    Raises:
        ValueError: If the probability or the share isn't within 0-1, or the number is negative.
    """

    def __init__(
        self,
        probability: float = 0.8,
        share: float = 0.001,
        num_rarest: int = 3,
        fallback: bool = True,
        source: bool = False,
        centres: Centres = "all",
    ) -> None:
        if not 0 <= probability <= 1 or not 0 <= share <= 1 or num_rarest < 0:
            raise ValueError(
                f"RareClassMining: found probability={probability}, share={share} and num_rarest={num_rarest}; "
                "expected a probability and a share within 0-1 and a number of classes, 0 or more."
            )
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
            priority: Classes looked for first.
            fallback: Classes looked for where none of those is present.

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
        priority: Classes looked for first.
        fallback: Classes looked for where none of those is present.
        probability: Share of the samples that are mined.
        centres: See `RareClassMining`.
    """

    def __init__(
        self,
        base: ScaledCrop,
        priority: tuple[int, ...],
        fallback: tuple[int, ...],
        probability: float = 0.8,
        centres: Centres = "all",
    ) -> None:
        super().__init__(
            base.crop, base.scale, base.scale_step, base.mirror, base.resize, base.interpolation, base.fill
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
    """The classes that a crop may look for: those of priority that are present, else those of the fallback set.

    Args:
        window: Labels of the pixels that may be the centre, uint8 (h, w).
        priority: Looked for first.
        fallback: Looked for where none of `priority` is present.

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


def _scale_grid(scale: tuple[float, float], step: float) -> npt.NDArray[np.float64]:
    smallest, largest = scale
    steps = round((largest - smallest) / step) if step > 0 else -1
    if steps < 0 or abs(smallest + steps * step - largest) > 1e-6:
        raise ValueError(
            f"ScaledCrop: found scale_step={step}; expected a step that leads from {smallest} to {largest}, e.g. "
            "0.1 from 0.5 to 1.5."
        )
    return np.linspace(smallest, largest, steps + 1)


def _mirror(array: UInt8) -> UInt8:
    return np.ascontiguousarray(array[:, ::-1])
