"""ClassMix: paste the pixels of half of an image's classes onto another (Olsson et al., WACV 2021)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX

_NUM_VALUES = 256
_SAMPLED = 251  # one pixel of as many is sampled; a prime, so that columns take turns


def class_presence(mask: Tensor, *, include_ignore: bool = True) -> Tensor:
    """Which label values each image holds.

    Args:
        mask: Label maps (N, H, W) of values in 0-255, of any integer type.
        include_ignore: Whether void (255) counts as one ordinary value.

    Returns:
        bool (N, 256); column = label value.
    """
    presence = (_presence_on_cpu if mask.device.type == "cpu" else _presence)(mask)
    if not include_ignore:
        presence[:, IGNORE_INDEX] = False
    return presence


def choose_half(presence: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Chooses half of the present values of each image, uniformly, without replacement; an odd number rounds up.

    Args:
        presence: bool (N, V), as `class_presence` gives it.
        generator: Source of randomness, on the CPU.

    Returns:
        bool (N, V); ceil(n / 2) chosen values in a row with n present ones, none in a row without any.
    """
    return 2 * _random_rank(presence, generator) < presence.sum(1, keepdim=True)  # the first ceil(n / 2)


def choose_from_pool(presence: Tensor, pool: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Chooses half of the present values of a pool, uniformly, without replacement; an odd number rounds down.

    Args:
        presence: bool (N, V), as `class_presence` gives it.
        pool: Values that may be chosen, bool (V,).
        generator: Source of randomness, on the CPU.

    Returns:
        bool (N, V); in a row where P values of the pool are present floor(P / 2) of them, but 1 if P = 1.
    """
    available = presence & pool
    number = available.sum(1, keepdim=True)
    return _random_rank(available, generator) < torch.maximum(number // 2, number.clamp(max=1))


def _random_rank(presence: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random order of the values of each image, int64 (N, V) from 0 on; present values come first."""
    scores = torch.rand(presence.shape, generator=generator, dtype=torch.float32)
    scores = scores.to(presence.device, non_blocking=True)
    return scores.masked_fill_(~presence, -1.0).argsort(dim=1, descending=True).argsort(dim=1)


def preceding(chosen: Tensor, presence: Tensor) -> Tensor:
    """Replaces each chosen value by the one before it among the present ones: void, 255, is the first of all.

    Before the first present value comes the last. This is what EHTDI's program does by an index that is one too low.

    Args:
        chosen: bool (N, 256), present values.
        presence: bool (N, 256), as `class_presence` gives it.

    Returns:
        bool (N, 256).
    """
    present = presence.roll(1, dims=1)  # column 0 is void, column c + 1 class c
    places = torch.arange(_NUM_VALUES, device=present.device).where(present, _NUM_VALUES)
    onward = places.flip(1).cummin(dim=1).values.flip(1)  # first present place from each on
    following = F.pad(onward[:, 1:], (0, 1), value=_NUM_VALUES)
    following = torch.where(following < _NUM_VALUES, following, onward[:, :1]).clamp(max=_NUM_VALUES - 1)
    return (present & chosen.roll(1, dims=1).gather(1, following)).roll(-1, dims=1)


def paste_mask_of(mask: Tensor, chosen: Tensor) -> Tensor:
    """Pixels whose label is among the chosen values.

    Args:
        mask: Label maps (N, H, W) of values in 0-255, of any integer type.
        chosen: bool (N, 256).

    Returns:
        bool (N, H, W).
    """
    return (_look_up_on_cpu if mask.device.type == "cpu" else _look_up)(mask, chosen)


def indexable(mask: Tensor) -> Tensor:
    """Labels of the type that `class_presence` and `paste_mask_of` work on: bytes on a CPU, int64 elsewhere."""
    return mask.byte() if mask.device.type == "cpu" else mask.long()


def _presence(mask: Tensor) -> Tensor:
    presence = torch.zeros(mask.shape[0], _NUM_VALUES, dtype=torch.bool, device=mask.device)
    return presence.scatter_(1, mask.flatten(1).long(), True)


def _presence_on_cpu(mask: Tensor) -> Tensor:
    """`_presence` in an eighth of the time: of a sample of the pixels first, then of the few that hold other values."""
    presence = torch.zeros(mask.shape[0], _NUM_VALUES, dtype=torch.bool)
    for row, labels in zip(presence.numpy(), mask.byte().numpy(), strict=True):
        row[labels.reshape(-1)[::_SAMPLED]] = True
        row[labels[_table(labels, ~row)]] = True
    return presence


def _look_up(mask: Tensor, chosen: Tensor) -> Tensor:
    return chosen.gather(1, mask.flatten(1).long()).view_as(mask)


def _look_up_on_cpu(mask: Tensor, chosen: Tensor) -> Tensor:
    """`_look_up` in a fifth of the time."""
    rows = zip(mask.byte().numpy(), chosen.numpy(), strict=True)
    return torch.from_numpy(np.stack([_table(labels, row) for labels, row in rows]))


def _table(labels: NDArray[np.uint8], row: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What a row holds for each label, by OpenCV's vectorised table of bytes."""
    import cv2  # only where it is needed, as it takes long to import

    return cv2.LUT(labels, row.view(np.uint8)).view(np.bool_)


def class_mix(
    mask: Tensor,
    generator: torch.Generator | None = None,
    *,
    include_ignore: bool = True,
    of_batch: bool = False,
) -> Tensor:
    """Paste mask of half of each image's classes (DACS, Algorithm 1, line "randomly select half of the classes").

    Args:
        mask: Label maps (N, H, W) of values in 0-255, of any integer type.
        generator: Source of randomness, on the CPU.
        include_ignore: Whether void may be chosen, as in the published program; without it an image that holds
            nothing but void gives an empty mask.
        of_batch: Whether each image's classes are half of those of the whole batch, of which it may lack some
            (DAFormer's program).

    Returns:
        bool (N, H, W); true where the image is to be pasted.
    """
    mask = indexable(mask)  # once for both
    presence = class_presence(mask, include_ignore=include_ignore)
    if of_batch:
        presence = presence.any(dim=0, keepdim=True).expand_as(presence)
    return paste_mask_of(mask, choose_half(presence, generator))


def paste(foreground: Tensor, background: Tensor, paste_mask: Tensor) -> Tensor:
    """Takes `foreground` on the mask and `background` elsewhere.

    Args:
        foreground: Images (N, C, H, W) or maps (N, H, W), of any type.
        background: As `foreground`; brought to its type.
        paste_mask: bool (N, H, W).

    Returns:
        The mix, of the shape and type of `foreground`.
    """
    background = background.to(foreground.dtype)
    mask = paste_mask if foreground.ndim == 3 else paste_mask.unsqueeze(1)
    # The first two are exact with weights of 0 and 1 (bytes wrap around), and faster on a CPU: `torch.where` isn't
    # vectorised there.
    if foreground.is_floating_point():
        return background.lerp(foreground, mask.to(foreground.dtype))
    if foreground.dtype == torch.uint8:
        return background.addcmul(foreground - background, mask.to(torch.uint8))
    return torch.where(mask, foreground, background)
