"""Mixing of images and label maps: plain torch, batched, on the device."""

from lightning_uda.mixing.class_mix import (
    choose_from_pool,
    choose_half,
    class_mix,
    class_presence,
    paste,
    paste_mask_of,
)
from lightning_uda.mixing.consistency import (
    ConfidenceConsistency,
    Consistency,
    FirstTermConsistency,
    LiteralConsistency,
    TwoTermConsistency,
)
from lightning_uda.mixing.paste_masks import BoxMask, ClassMask, ClassPool, PasteMask
from lightning_uda.mixing.soft_paste import soft_paste
from lightning_uda.mixing.tail_paste import paste_tail

__all__ = [
    "BoxMask",
    "ClassMask",
    "ClassPool",
    "ConfidenceConsistency",
    "Consistency",
    "FirstTermConsistency",
    "LiteralConsistency",
    "PasteMask",
    "TwoTermConsistency",
    "choose_from_pool",
    "choose_half",
    "class_mix",
    "class_presence",
    "paste",
    "paste_mask_of",
    "paste_tail",
    "soft_paste",
]
