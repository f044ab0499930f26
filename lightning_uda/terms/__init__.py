"""Further terms of a method's loss; any method takes any of them by name (`terms` of the method)."""

from lightning_uda.terms.confident_paste import ConfidentPaste
from lightning_uda.terms.contrast import PixelContrast, PrototypeContrast
from lightning_uda.terms.feature_mmd import FeatureMMD, mmd

__all__ = ["ConfidentPaste", "FeatureMMD", "PixelContrast", "PrototypeContrast", "mmd"]
