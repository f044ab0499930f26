"""Image translation and photometric augmentation behind one interface."""

from lightning_uda.translation.photometric import (
    ColorJitter,
    GaussianBlur,
    RandomApply,
    StrongAugmentation,
    Translation,
)

__all__ = ["ColorJitter", "GaussianBlur", "RandomApply", "StrongAugmentation", "Translation"]
