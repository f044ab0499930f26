"""Segmentation networks and the loading of their weights."""

from lightning_uda.networks.base import BatchNormPolicy, InputNormalization, SegmentationNetwork
from lightning_uda.networks.checkpoints import (
    Entry,
    LoadReport,
    WeightsError,
    copy_weights,
    load_weights,
    read_weights,
)
from lightning_uda.networks.deeplab_v2 import ASPPClassifier, CaffeDeepLabV2, DeepLabV2

__all__ = [
    "ASPPClassifier",
    "BatchNormPolicy",
    "CaffeDeepLabV2",
    "DeepLabV2",
    "Entry",
    "InputNormalization",
    "LoadReport",
    "SegmentationNetwork",
    "WeightsError",
    "copy_weights",
    "load_weights",
    "read_weights",
]
