"""Long-tail class paste: rare classes from other images, laid over a template (DSP, Algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.mixing.class_mix import paste


def paste_tail(
    image: Tensor, mask: Tensor, paste_mask: Tensor, tail_image: Tensor, tail_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrites a template, its labels and its paste mask by the pixels of the long-tail crops, in their order.

    Args:
        image: Templates (N, 3, H, W), of any type; bytes need a quarter of the memory traffic of floats.
        mask: Their labels (N, H, W), of any type.
        paste_mask: bool (N, H, W).
        tail_image: k crops for each template, of the type of `image` (N, k, 3, H, W).
        tail_mask: Their labels, of the type of `mask` (N, k, H, W): the class where it is to be pasted, 255 elsewhere.

    Returns:
        The composite's image, labels and paste mask.
    """
    for crop, labels in zip(tail_image.unbind(1), tail_mask.unbind(1), strict=True):
        pasted = labels != IGNORE_INDEX
        image = paste(crop, image, pasted)
        mask = paste(labels, mask, pasted)
        paste_mask = paste_mask | pasted
    return image, mask, paste_mask
