"""Losses: plain torch functions."""

from lightning_uda.losses.cross_entropy import cross_entropy, weighted_cross_entropy
from lightning_uda.losses.feature_alignment import FeatureAlignment
from lightning_uda.losses.mmd import mmd
from lightning_uda.losses.soft_labels import (
    ConfidenceConsistency,
    Consistency,
    FirstTermConsistency,
    LiteralConsistency,
    SoftSegmentationLoss,
    TwoTermConsistency,
)

__all__ = [
    "ConfidenceConsistency",
    "Consistency",
    "FeatureAlignment",
    "FirstTermConsistency",
    "LiteralConsistency",
    "SoftSegmentationLoss",
    "TwoTermConsistency",
    "cross_entropy",
    "mmd",
    "weighted_cross_entropy",
]
