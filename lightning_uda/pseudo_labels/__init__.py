"""Pseudo-labels and the weights of pixels and classes made from their confidence: plain torch."""

from lightning_uda.pseudo_labels.alignment import DistributionAlignment
from lightning_uda.pseudo_labels.class_weights import (
    ClassWeighting,
    DynamicClassWeights,
    FixedClassWeights,
    class_counts,
    dynamic_weights,
)
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
    "ClassWeighting",
    "ConfidenceWeighting",
    "DistributionAlignment",
    "DynamicClassWeights",
    "FixedClassWeights",
    "ImageConfidence",
    "PixelConfidence",
    "PixelWeighting",
    "UniformWeights",
    "class_counts",
    "dynamic_weights",
    "pseudo_label",
    "unpasted_mean",
]
