"""Label maps at another size, on their device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def resize_labels(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resizing by picking rows and columns, as Pillow picks them (DACS, as published).

    Args:
        mask: Labels of any integer type, (N, H, W).
        size: Height and width wanted.

    Returns:
        (N, *size), of the same type and on the same device.
    """
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    rows, columns = (
        nearest_indices(have, want).to(mask.device) for have, want in zip(mask.shape[-2:], size, strict=True)
    )
    return mask[..., rows[:, None], columns]


@lru_cache(maxsize=64)
def nearest_indices(have: int, want: int) -> Tensor:
    """Which of `have` pixels Pillow's nearest neighbour takes for each of `want`, int64 (want,).

    It adds up the step, and so do we, to round where it rounds.
    """
    step = have / want
    return torch.from_numpy(np.cumsum([step / 2] + [step] * (want - 1)).astype(np.int64))
