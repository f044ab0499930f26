"""Geometry of images and label maps, run in the loader's workers; the only file that knows albumentations."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import DatasetError
from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.ranges import SHARE, SIDE, ranged
from lightning_uda.resize import Interpolation, resize_image, resize_label

UInt8 = npt.NDArray[np.uint8]


class TrainTransform:
    """Resize, random crop and random horizontal flip of a training image and its label map.

    Args:
        resize: Height and width before cropping; `None` keeps the size of the file.
        interpolation: For the image: "bicubic" (DACS on GTA5) or "bilinear" (DACS on Cityscapes).
        crop: Height and width of the random crop, offsets uniform with both ends included; `None` takes the whole
            image. Images smaller than the crop are padded with black and void; keep the crop within the images,
            as the black border of a target image without margins gets pseudo-labels like any other pixel.
        horizontal_flip: Probability of mirroring; 0 in DACS.
    """

    @ranged(resize=SIDE, crop=SIDE, horizontal_flip=SHARE)
    def __init__(
        self,
        resize: tuple[int, int] | None = None,
        interpolation: Interpolation = "bilinear",
        crop: tuple[int, int] | None = None,
        horizontal_flip: float = 0.0,
    ) -> None:
        if resize is not None and crop is not None and (crop[0] > resize[0] or crop[1] > resize[1]):
            raise ValueError(
                f"TrainTransform: found a crop of {crop[0]} x {crop[1]} from images resized to {resize[0]} x "
                f"{resize[1]} (height x width); expected a crop that fits. Make `crop` smaller or `resize` larger."
            )
        self.resize = resize
        self.interpolation: Interpolation = interpolation
        self.crop: tuple[int, int] | None = crop
        self.random = None if crop is None and not horizontal_flip else _random(crop, horizontal_flip)

    def __call__(self, image: UInt8, label: UInt8 | None, seed: int) -> tuple[UInt8, UInt8 | None]:
        """Transforms one sample; the same seed draws the same crop and flip.

        Args:
            image: uint8 (H, W, 3).
            label: uint8 (H', W'), which may differ in size if `resize` is set, or `None`.
            seed: Non-negative 32-bit seed.

        Returns:
            The image, uint8 (h, w, 3), and the label map, uint8 (h, w), or `None`.

        Raises:
            DatasetError: If image and label differ in size and `resize` isn't set.
        """
        image, label = self.to_one_size(image, label)
        if self.random is None:
            return image, label
        self.random.set_random_seed(seed)
        result = self.random(image=image) if label is None else self.random(image=image, mask=label)
        return result["image"], result.get("mask")

    def to_one_size(self, image: UInt8, label: UInt8 | None) -> tuple[UInt8, UInt8 | None]:
        """Brings image and label map to `resize`, or without it requires that they have one size.

        Raises:
            DatasetError: If they haven't.
        """
        if self.resize is not None:
            image = resize_image(image, self.resize, self.interpolation)
            return image, None if label is None else resize_label(label, self.resize)
        if label is not None and label.shape != image.shape[:2]:
            raise DatasetError(
                f"{type(self).__name__}: found a label of {label.shape[0]} x {label.shape[1]} for an image of "
                f"{image.shape[0]} x {image.shape[1]} (height x width); expected equal sizes. Set `resize` in the "
                "transform, which brings both to one size, or mend the pair (`lightning-uda data check` names it)."
            )
        return image, label


class EvalTransform:
    """Deterministic resizing for validation, test and prediction.

    Args:
        resize: Height and width of the image given to the network; `None` keeps the size of the file.
        interpolation: "bilinear" or "bicubic".
        labels: "native" scores on label maps as they are in the file; "resized" brings them to `resize` (nearest),
            which is what DACS's tables do.
    """

    @ranged(resize=SIDE)
    def __init__(
        self,
        resize: tuple[int, int] | None = None,
        interpolation: Interpolation = "bilinear",
        labels: Literal["native", "resized"] = "native",
    ) -> None:
        if labels == "resized" and resize is None:
            raise ValueError('EvalTransform: labels="resized" needs `resize`, the height and width to bring them to.')
        self.resize = resize
        self.interpolation: Interpolation = interpolation
        self.labels = labels

    def __call__(self, image: UInt8, label: UInt8 | None) -> tuple[UInt8, UInt8 | None]:
        """Image uint8 (h, w, 3) and label map uint8 (h', w') or `None`, of one sample."""
        if self.resize is not None:
            image = resize_image(image, self.resize, self.interpolation)
            if label is not None and self.labels == "resized":
                label = resize_label(label, self.resize)
        return image, label


def _random(crop: tuple[int, int] | None, horizontal_flip: float) -> Any:
    """Albumentations' random crop and flip."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer version
    import albumentations as A  # slow to import; many datasets are taken as they are

    steps: list[Any] = []
    if crop is not None:
        steps.append(A.RandomCrop(*crop, pad_if_needed=True, fill=0, fill_mask=IGNORE_INDEX))
    if horizontal_flip:
        steps.append(A.HorizontalFlip(p=horizontal_flip))
    return A.Compose(steps)
