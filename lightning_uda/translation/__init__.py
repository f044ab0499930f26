"""Image translation and photometric augmentation behind one interface."""

from lightning_uda.translation.photometric import (
    ColorJitter,
    GaussianBlur,
    RadianAugmentation,
    RandomApply,
    StrongAugmentation,
    Translation,
)

__all__ = ["ColorJitter", "GaussianBlur", "RadianAugmentation", "RandomApply", "StrongAugmentation", "Translation"]
