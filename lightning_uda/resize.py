"""Resizing of images, label maps and logits: of single arrays in the loader's workers, of batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
"""Height and width."""

Interpolation = Literal["bilinear", "bicubic"]
LabelSampling = Literal["nearest", "corner_nearest"]
UInt8 = npt.NDArray[np.uint8]


def size_of(tensor: Tensor) -> Size:
    """Height and width, the last two dimensions."""
    return tensor.shape[-2], tensor.shape[-1]


def upsample(logits: Tensor, size: Size, align_corners: bool = True) -> Tensor:
    """Bilinear resizing of scores to a size, in float32 under mixed precision too.

    Args:
        logits: (N, C, h, w), of any floating-point type.
        size: Height and width wanted.
        align_corners: Whether corners stay aligned: yes for DeepLab-v2 and its family, no for DAFormer's networks.

    Returns:
        float32 (N, C, *size); logits of that size and type are given back as they are.
    """
    if not torch.compiler.is_compiling() and size_of(logits) == tuple(size):  # compiled graphs hold for all sizes
        return logits.float()
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=align_corners)


def upsampled_bands(logits: Tensor, size: Size, rows: int, align_corners: bool = True) -> Iterator[Tensor]:
    """What `upsample` gives, some rows after the other, so that all of it never has to be held.

    Args:
        logits: (N, C, h, w), of any floating-point type.
        size: Height and width wanted, (H, W).
        rows: Most rows of a band, 1 or more. Rows of one band lie between the same two rows of the logits.
        align_corners: As in `upsample`.

    Yields:
        Bands from top to bottom, float32 (N, C, rows, W), which may be overwritten: those rows of `upsample` but for
        rounding.
    """
    logits = logits.float()
    have, (want, width) = logits.shape[-2], size
    if size_of(logits) == tuple(size):
        yield from (band.clone() for band in torch.split(logits, rows, dim=2))
        return
    wide = F.interpolate(logits, size=(have, width), mode="bilinear", align_corners=align_corners)
    y = torch.arange(want, dtype=torch.float32, device=logits.device)
    y = y * ((have - 1) / max(want - 1, 1)) if align_corners else ((y + 0.5) * (have / want) - 0.5).clamp(min=0)
    above = y.long().clamp(max=have - 1)
    numbers, runs = torch.unique_consecutive(above, return_counts=True)
    for number, shares in zip(numbers.tolist(), torch.split((y - above).view(-1, 1), runs.tolist()), strict=True):
        upper, lower = (wide.narrow(2, min(row, have - 1), 1) for row in (number, number + 1))
        for share in torch.split(shares, rows):
            yield torch.lerp(upper, lower, share)


def top_left(features: Tensor, size: Size) -> Tensor:
    """The first rows and columns of features (N, C, h, w): (N, C, *size).

    Exported and compiled graphs pick them by number, as a slice would hold only for sizes where something is cut off.
    """
    height, width = size
    if not torch.compiler.is_compiling():
        return features[..., :height, :width]
    rows, columns = (torch.arange(side, device=features.device) for side in size)
    return features.index_select(-2, rows).index_select(-1, columns)


def resize_images(image: Tensor, size: Size) -> Tensor:
    """Antialiased bilinear resizing of images float (N, 3, H, W), as Pillow does it."""
    if size_of(image) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bilinear", antialias=True)


def resize_labels(mask: Tensor, size: Size) -> Tensor:
    """Nearest-neighbour resizing by picking rows and columns, as Pillow picks them (DACS, as published).

    Args:
        mask: Labels of any integer type, (N, H, W).
        size: Height and width wanted.

    Returns:
        (N, *size), of the same type and on the same device.
    """
    if size_of(mask) == tuple(size):
        return mask
    rows, columns = (
        nearest_indices(have, want).to(mask.device) for have, want in zip(mask.shape[-2:], size, strict=True)
    )
    return mask[..., rows[:, None], columns]


def subsample(mask: Tensor, size: Size, sampling: LabelSampling = "nearest") -> Tensor:
    """Labels at the size of features, by picking pixels.

    Args:
        mask: Labels of any integer type, (N, H, W).
        size: Height and width wanted.
        sampling: "nearest" takes pixel floor(i H / h), as PyTorch's nearest neighbour does, "corner_nearest" the one
            that lies where logits with aligned corners do, round(i (H - 1) / (h - 1)).

    Returns:
        (N, *size), of the same type and on the same device.
    """
    rows, columns = (
        torch.arange(want, device=mask.device) * have // want
        if sampling == "nearest"
        else torch.linspace(0, have - 1, want, device=mask.device).round().long()
        for have, want in zip(size_of(mask), size, strict=True)
    )
    return mask[:, rows[:, None], columns]


def majority(mask: Tensor, size: Size, num_classes: int) -> tuple[Tensor, Tensor]:
    """The most frequent class of each cell of a grid over label maps.

    Args:
        mask: Train ids (N, H, W), of any integer type; 255 is a class of its own.
        size: Height and width of the grid, at most those of the maps.
        num_classes: C.

    Returns:
        Classes, int64 (N, *size), of which `num_classes` is void, and the share (0-1) of a cell's pixels that has its
        class, float32 (N, *size).
    """
    rows, columns = (have // want for have, want in zip(size_of(mask), size, strict=True))
    labels = subsample(mask, (size[0] * rows, size[1] * columns)).long().clamp(max=num_classes)
    pixels = labels.view(-1, size[0], rows, size[1], columns).permute(0, 2, 4, 1, 3).flatten(1, 2)
    counts = torch.zeros(len(labels), num_classes + 1, *size, device=mask.device)
    counts.scatter_add_(1, pixels, torch.ones_like(pixels, dtype=counts.dtype))
    most, found = counts.max(dim=1)
    return found, most / (rows * columns)


@lru_cache(maxsize=64)
def nearest_indices(have: int, want: int) -> Tensor:
    """Which of `have` pixels Pillow's nearest neighbour takes for each of `want`, int64 (want,).

    It adds up the step, and so do we, to round where it rounds.
    """
    step = have / want
    return torch.from_numpy(np.cumsum([step / 2] + [step] * (want - 1)).astype(np.int64))


def resize_image(image: UInt8, size: Size, interpolation: Interpolation = "bilinear") -> UInt8:
    """Antialiased resizing as Pillow does it: bit-identical for bilinear halving, within two grey levels otherwise.

    Args:
        image: uint8 (H, W, 3).
        size: Height and width wanted.
        interpolation: "bilinear" or "bicubic".

    Returns:
        uint8 (*size, 3).
    """
    if image.shape[:2] == size:
        return image
    batch = torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0).permute(0, 3, 1, 2)  # channels last: faster
    resized = F.interpolate(batch, size=size, mode=interpolation, antialias=True, align_corners=False)
    return cast(UInt8, resized.squeeze(0).permute(1, 2, 0).contiguous().numpy())


def resize_label(label: UInt8, size: Size) -> UInt8:
    """Nearest-neighbour resizing of a label map by picking rows and columns, as Pillow picks them.

    Args:
        label: uint8 (H, W).
        size: Height and width wanted.

    Returns:
        uint8 (*size).
    """
    if label.shape == size:
        return label
    rows, columns = (nearest_indices(found, wanted).numpy() for found, wanted in zip(label.shape, size, strict=True))
    return label.take(rows, axis=0).take(columns, axis=1)  # several times faster than one index for both
