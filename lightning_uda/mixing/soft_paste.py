"""Soft paste: blend the pasted pixels with what lies under them (DSP, equations 3 and 4)."""

from __future__ import annotations

from torch import Tensor


def soft_paste(foreground: Tensor, background: Tensor, soft_mask: Tensor) -> Tensor:
    """Blends `foreground` into `background`.

    Args:
        foreground: Images (N, C, H, W).
        background: Images (N, C, H, W).
        soft_mask: Share of the foreground in each pixel, in [0, 1] (N, H, W): M' = beta * M in DSP, the paste mask
            times the opacity; beta = 1 is a hard paste.

    Returns:
        M' * foreground + (1 - M') * background, of shape (N, C, H, W).
    """
    return background.lerp(foreground, soft_mask.unsqueeze(1))
