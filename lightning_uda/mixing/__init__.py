"""Mixing of images and label maps: plain torch, batched, on the device."""

from lightning_uda.mixing.class_mix import choose_half, class_mix, class_presence, paste, paste_mask_of
from lightning_uda.mixing.soft_paste import soft_paste

__all__ = ["choose_half", "class_mix", "class_presence", "paste", "paste_mask_of", "soft_paste"]
