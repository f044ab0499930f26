"""Soft paste: blend the pasted pixels with what lies under them (DSP, equations 3 and 4)."""

from __future__ import annotations

from torch import Tensor


def soft_paste(foreground: Tensor, background: Tensor, paste_mask: Tensor, opacity: float) -> Tensor:
    """Blends `foreground` into `background` on the mask.

    Args:
        foreground: Images (N, C, H, W).
        background: Images (N, C, H, W).
        paste_mask: bool (N, H, W).
        opacity: Share of the foreground on the mask, beta in DSP, in [0, 1]; 1 is a hard paste.

    Returns:
        beta * M * foreground + (1 - beta * M) * background, of shape (N, C, H, W).
    """
    return background.lerp(foreground, paste_mask.unsqueeze(1).to(foreground.dtype) * opacity)
