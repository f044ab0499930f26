"""Pseudo-labels and what is made of their confidence: plain torch."""

from lightning_uda.pseudo_labels.alignment import DistributionAlignment
from lightning_uda.pseudo_labels.assignment import assign_pseudo_labels
from lightning_uda.pseudo_labels.class_balance import class_balance_score
from lightning_uda.pseudo_labels.confidence import (
    BatchConfidence,
    ConfidenceWeighting,
    ImageConfidence,
    PixelConfidence,
    PixelWeighting,
    UniformWeights,
    pseudo_label,
)
from lightning_uda.pseudo_labels.spatial_prior import resize_prior
from lightning_uda.pseudo_labels.thresholds import LogitHistogram, RadixSelect, ThresholdSearch, rank_of

__all__ = [
    "BatchConfidence",
    "ConfidenceWeighting",
    "DistributionAlignment",
    "ImageConfidence",
    "LogitHistogram",
    "PixelConfidence",
    "PixelWeighting",
    "RadixSelect",
    "ThresholdSearch",
    "UniformWeights",
    "assign_pseudo_labels",
    "class_balance_score",
    "pseudo_label",
    "rank_of",
    "resize_prior",
]
