"""Segmentation networks and the loading of their weights."""

from lightning_uda.networks.base import BatchNormPolicy, InputNormalization, SegmentationNetwork
from lightning_uda.networks.deeplab_v2 import ASPPClassifier, CaffeDeepLabV2, DeepLabV2
from lightning_uda.networks.fcn8s import FCN8s
from lightning_uda.networks.weights import (
    Entry,
    LoadReport,
    WeightsError,
    copy_weights,
    load_weights,
    read_weights,
)
from lightning_uda.networks.wide_resnet38 import WideResNet38

__all__ = [
    "ASPPClassifier",
    "BatchNormPolicy",
    "CaffeDeepLabV2",
    "DeepLabV2",
    "Entry",
    "FCN8s",
    "InputNormalization",
    "LoadReport",
    "SegmentationNetwork",
    "WeightsError",
    "WideResNet38",
    "copy_weights",
    "load_weights",
    "read_weights",
]
