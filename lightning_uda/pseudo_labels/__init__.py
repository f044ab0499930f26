"""Pseudo-labels and the pixel weights made from their confidence: plain torch."""

from lightning_uda.pseudo_labels.alignment import DistributionAlignment
from lightning_uda.pseudo_labels.confidence import (
    BatchConfidence,
    ConfidenceWeighting,
    ImageConfidence,
    PixelConfidence,
    PixelWeighting,
    UniformWeights,
    pseudo_label,
    unpasted_mean,
)

__all__ = [
    "BatchConfidence",
    "ConfidenceWeighting",
    "DistributionAlignment",
    "ImageConfidence",
    "PixelConfidence",
    "PixelWeighting",
    "UniformWeights",
    "pseudo_label",
    "unpasted_mean",
]
