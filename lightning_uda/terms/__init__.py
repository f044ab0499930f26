"""Further terms of a method's loss; any method takes any of them by name (`terms` of the method)."""

from lightning_uda.terms.confident_paste import ConfidentPaste
from lightning_uda.terms.contrast import PixelContrast, PrototypeContrast
from lightning_uda.terms.feature_distance import FeatureDistance
from lightning_uda.terms.feature_mmd import FeatureMMD, mmd
from lightning_uda.terms.masked_consistency import MaskedConsistency
from lightning_uda.terms.pull import Projector, Pull
from lightning_uda.terms.supervised import Supervised
from lightning_uda.terms.translated import Translated

__all__ = [
    "ConfidentPaste",
    "FeatureDistance",
    "FeatureMMD",
    "MaskedConsistency",
    "PixelContrast",
    "Projector",
    "PrototypeContrast",
    "Pull",
    "Supervised",
    "Translated",
    "mmd",
]
