"""Training crops at random scales (CBST's augmentation)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_uda.data.transforms import TrainTransform, UInt8
from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.ranges import BYTE, SCALE, SHARE, SIDE, ranged
from lightning_uda.resize import Interpolation, Size, resize_image, resize_label


class ScaledCrop(TrainTransform):
    """Random scale, random crop and random mirroring of a training image and its label map.

    The region that fills the crop is cut from the image first and resized afterwards, as CBST's MXNet program does it.
    Its PyTorch program resizes the whole image first, which shows the same up to a fraction of a pixel but takes
    two to three times as long. Images smaller than the region are padded at the bottom and on the right.

    The recipes: crop (504, 504), scale (0.7, 1.3) for ResNet-38; crop (512, 1024), scale (0.5, 1.5), step 0.1 for
    DeepLab; both mirror half of the images. The programs' Lanczos filter for shrinking is here the one
    `interpolation`, antialiased.

    Args:
        crop: Height and width of what is given to the network.
        scale: Smallest and largest magnification, drawn evenly.
        scale_step: Draws from the grid smallest, smallest + step, ..., largest; `None` draws any number between.
        horizontal_flip: Probability of mirroring; 0.5 in CBST. The default is that of `TrainTransform`, which a config
            that names this class instead hands down.
        resize: Height and width before scaling; `None` keeps the size of the file.
        interpolation: For the image, "bilinear" or "bicubic"; label maps take the nearest pixel.
        fill: RGB of the padding, 0-255; by default ImageNet's mean, which is about 0 after normalisation. Its labels
            are 255.

    Raises:
        ValueError: If the scales aren't positive and ascending, or the step doesn't lead from one to the other.
    """

    crop: tuple[int, int]

    @ranged(crop=SIDE, scale=SCALE, scale_step=SCALE, horizontal_flip=SHARE, resize=SIDE, fill=BYTE)
    def __init__(
        self,
        crop: tuple[int, int],
        scale: tuple[float, float] = (0.7, 1.3),
        scale_step: float | None = None,
        horizontal_flip: float = 0.0,
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
        self.horizontal_flip = horizontal_flip
        self.fill = fill

    def __call__(self, image: UInt8, label: UInt8 | None, seed: int) -> tuple[UInt8, UInt8 | None]:
        """Transforms one sample; everything drawn is a function of the seed (and, when mining, of the label map).

        Args:
            image: uint8 (H, W, 3).
            label: uint8 (H', W'), which may differ in size if `resize` is set, or `None`.
            seed: Non-negative seed.

        Returns:
            The image, uint8 (*crop, 3), and the label map, uint8 crop, or `None`.

        Raises:
            DatasetError: If image and label differ in size and `resize` isn't set.
        """
        image, label = self.to_one_size(image, label)
        generator = np.random.default_rng(seed)
        scale = generator.uniform(*self.scale) if self.grid is None else generator.choice(self.grid)
        flip = generator.random() < self.horizontal_flip
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
            label: uint8 (H, W), for subclasses that place regions by it.
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
