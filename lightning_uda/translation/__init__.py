"""Image translation and photometric augmentation behind one interface, and the random crops of views."""

from lightning_uda.translation.blend_jitter import BlendJitter
from lightning_uda.translation.fourier import FourierTranslation, exchange_amplitudes
from lightning_uda.translation.photometric import (
    ColorJitter,
    GaussianBlur,
    RandomApply,
    RandomBlur,
    StrongAugmentation,
    Translation,
)
from lightning_uda.translation.random_crop import RandomResizedCrop, crop_images, crop_labels
from lightning_uda.translation.view_jitter import Grey, HSVJitter, KernelBlur, ViewJitter

__all__ = [
    "BlendJitter",
    "ColorJitter",
    "FourierTranslation",
    "GaussianBlur",
    "Grey",
    "HSVJitter",
    "KernelBlur",
    "RandomApply",
    "RandomBlur",
    "RandomResizedCrop",
    "StrongAugmentation",
    "Translation",
    "ViewJitter",
    "crop_images",
    "crop_labels",
    "exchange_amplitudes",
]
