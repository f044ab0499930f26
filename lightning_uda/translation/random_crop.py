"""Random resized crops of images and their label maps, whole batches on the device (EHTDI's views, as published)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_uda.ranges import COUNT, SCALE, SHARE_NOT_ZERO, SIDE, ranged
from lightning_uda.resize import Size, size_of

Boxes = npt.NDArray[np.int64]
"""A part of each image, (N, 4): its first row and column, its height and its width, in pixels."""


class RandomResizedCrop:
    """One random box of each image, brought to one size; images and label maps share their boxes.

    A box has a random share of the image's area and a random aspect ratio, and lies anywhere in the image. If none of
    several draws fits in the image, the largest central box of an allowed aspect ratio is taken.

    Args:
        size: Height and width of the result, or one number for both; `None` keeps those of the images.
        scale: Range of the box's share of the image's area, drawn uniformly.
        ratio: Range of the box's width over its height, drawn log-uniformly. It is relative to that of `size`: 1
            keeps the shape of things. For a square `size`, as the paper's 512 x 512, it is the aspect ratio itself.
        tries: Draws of area and aspect ratio before the central box is taken.
    """

    @ranged(size=SIDE, scale=SHARE_NOT_ZERO, ratio=SCALE, tries=COUNT)
    def __init__(
        self,
        size: tuple[int, int] | int | None = None,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        tries: int = 10,
    ) -> None:
        size = (size, size) if isinstance(size, int) else size
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"RandomResizedCrop: found scale={scale}; expected 0 < lower <= upper <= 1.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"RandomResizedCrop: found ratio={ratio}; expected 0 < lower <= upper.")
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.tries = tries

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> Boxes:
        """Draws the boxes of `count` images.

        Args:
            count: Number of images, N.
            height: Of the images.
            width: Of the images.
            generator: Source of randomness, on the CPU.

        Returns:
            Boxes that lie in the images, int64 (N, 4).
        """
        draws = torch.rand(2 * self.tries + 2, count, generator=generator, dtype=torch.float64).numpy()
        (smallest, largest), (narrowest, widest) = self.scale, np.log(self.ratio)
        area = height * width * (smallest + (largest - smallest) * draws[: self.tries])
        aspect = self._aspect(height, width) * np.exp(narrowest + (widest - narrowest) * draws[self.tries : -2])
        sides = np.rint(np.sqrt([area / aspect, area * aspect])).astype(np.int64)  # (2, tries, N)
        frame = np.array([[height], [width]])
        fits = ((sides >= 1) & (sides <= frame[:, None])).all(axis=0)
        first = sides[:, fits.argmax(axis=0), np.arange(count)]
        central = np.array(self._central_box(height, width))[:, None]
        chosen = np.where(fits.any(axis=0), first, central)
        start = np.minimum(draws[-2:] * (frame - chosen + 1), frame - chosen).astype(np.int64)
        start = np.where(fits.any(axis=0), start, (frame - chosen) // 2)
        return np.concatenate([start, chosen]).T

    def _aspect(self, height: int, width: int) -> float:
        """Width over height of the result."""
        rows, columns = self.size or (height, width)
        return columns / rows

    def _central_box(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the largest box whose aspect ratio is allowed."""
        narrowest, widest = (self._aspect(height, width) * bound for bound in self.ratio)
        if width < narrowest * height:
            return max(1, round(width / narrowest)), width
        return height, max(1, min(width, round(height * widest)))

    def __call__(self, image: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Crops images and their label maps with the same boxes.

        Args:
            image: RGB (N, 3, H, W), uint8 or float in [0, 1].
            mask: Label maps (N, H, W), of any integer type.
            generator: Source of randomness, on the CPU.

        Returns:
            Images, float32 in [0, 1], and label maps of the type they had.

        Raises:
            ValueError: If the label maps aren't of the number and size of the images.
        """
        count, height, width = image.shape[0], *size_of(image)
        if mask.shape != (count, height, width):
            raise ValueError(
                f"RandomResizedCrop: found images {tuple(image.shape)} and label maps {tuple(mask.shape)}; expected "
                "label maps of the number, height and width of the images, so that one box fits both."
            )
        boxes = self.draw(count, height, width, generator)
        size = self.size or (height, width)
        return crop_images(image, boxes, size), crop_labels(mask, boxes, size)


def crop_images(image: Tensor, boxes: Boxes, size: Size) -> Tensor:
    """Bilinear resizing of one box of each image, as OpenCV's INTER_LINEAR resizes the crop: without antialiasing.

    Args:
        image: (N, C, H, W), uint8 or float in [0, 1].
        boxes: Within the images, (N, 4).
        size: Height and width of the result.

    Returns:
        float32 (N, C, *size) in [0, 1].
    """
    cropped = (_crop_on_cpu if image.device.type == "cpu" else _crop)(image, boxes, size)
    return cropped if image.is_floating_point() else cropped.div_(255)


def _crop(image: Tensor, boxes: Boxes, size: Size) -> Tensor:
    position = np.concatenate([_linear(boxes, axis, wanted) for axis, wanted in enumerate(size)], axis=1)
    corners = np.stack([np.floor(position), np.ceil(position)]).astype(np.int64)
    first, last = torch.from_numpy(corners).to(image.device, non_blocking=True)
    weight = torch.from_numpy((position - corners[0]).astype(np.float32)).to(image.device, non_blocking=True)
    top, bottom, down = (part[:, : size[0]] for part in (first, last, weight))
    left, right, across = (part[:, size[0] :] for part in (first, last, weight))
    upper, lower = (
        _pixels(image, rows, left).float().lerp_(_pixels(image, rows, right).float(), across[:, None, None])
        for rows in (top, bottom)
    )
    return upper.lerp_(lower, down[:, None, :, None])


def _crop_on_cpu(image: Tensor, boxes: Boxes, size: Size) -> Tensor:
    """`_crop` in a twentieth of the time, by OpenCV itself."""
    import cv2  # only where it is needed, as it takes long to import

    cropped = torch.empty(*image.shape[:2], *size, dtype=torch.float32)
    for results, channels, (top, left, height, width) in zip(cropped.numpy(), image, boxes, strict=True):
        for result, patch in zip(results, channels[:, top : top + height, left : left + width], strict=True):
            cv2.resize(patch.float().numpy(), size[::-1], dst=result, interpolation=cv2.INTER_LINEAR)
    return cropped


def crop_labels(mask: Tensor, boxes: Boxes, size: Size) -> Tensor:
    """Nearest-neighbour resizing of one box of each label map, as OpenCV's INTER_NEAREST resizes the crop.

    Args:
        mask: (N, H, W) of any type.
        boxes: Within the maps, (N, 4).
        size: Height and width of the result.

    Returns:
        (N, *size), of the same type.
    """
    position = np.concatenate([_nearest(boxes, axis, wanted) for axis, wanted in enumerate(size)], axis=1)
    rows, columns = position[:, : size[0]], position[:, size[0] :]
    return (_pick_on_cpu if mask.device.type == "cpu" else _pick)(mask, rows, columns)


def _pick(mask: Tensor, rows: Boxes, columns: Boxes) -> Tensor:
    down, across = (torch.from_numpy(part).to(mask.device, non_blocking=True) for part in (rows, columns))
    return _pixels(mask.unsqueeze(1), down, across).squeeze(1)


def _pick_on_cpu(mask: Tensor, rows: Boxes, columns: Boxes) -> Tensor:
    """`_pick` in less than a fifth of the time."""
    labels = zip(mask.numpy(), rows, columns, strict=True)
    return torch.from_numpy(np.stack([label.take(down, axis=0).take(across, axis=1) for label, down, across in labels]))


def _linear(boxes: Boxes, axis: int, wanted: int) -> npt.NDArray[np.float64]:
    """Where each of `wanted` pixels lies along an axis of the image: its centre, clamped to the box; (N, wanted)."""
    start, length = boxes[:, axis, None], boxes[:, 2 + axis, None]
    position = (np.arange(wanted) + 0.5) * (length / wanted) - 0.5
    return np.asarray(start + np.clip(position, 0, length - 1))


def _nearest(boxes: Boxes, axis: int, wanted: int) -> Boxes:
    """Which pixel of an axis each of `wanted` is, floor(i * length / wanted) as OpenCV rounds it; (N, wanted)."""
    start, length = boxes[:, axis, None], boxes[:, 2 + axis, None]
    step = 1 / (wanted / length)  # not length / wanted, which is another number now and then
    return np.asarray(start + np.minimum(np.arange(wanted) * step, length - 1).astype(np.int64))


def _pixels(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Picks rows (N, h) and columns (N, w) of each map, the same of all its channels: (N, C, H, W) to (N, C, h, w)."""
    count, channels = (torch.arange(n, device=maps.device) for n in maps.shape[:2])
    return maps[count[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]
