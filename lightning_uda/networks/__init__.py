"""Segmentation networks, the backbones and heads they are made of, and the loading of their weights."""

from lightning_uda.networks.backbones import VGG, Backbone, CaffeResNet, ResNet38, TimmCNN
from lightning_uda.networks.base import (
    BatchNormPolicy,
    Classifier,
    InputNormalization,
    Outputs,
    SegmentationNetwork,
    parameter_group,
)
from lightning_uda.networks.checkpoints import Start, find_checkpoint, start_from
from lightning_uda.networks.deeplab_v2 import CaffeDeepLabV2, DeepLabV2
from lightning_uda.networks.encoder_decoder import Auxiliary, EncoderDecoder
from lightning_uda.networks.fcn8s import FCN8s
from lightning_uda.networks.heads import ASPP, ASPPClassifier, DilatedConvolutions, Head, LevelScores
from lightning_uda.networks.weights import (
    ClassRows,
    Entry,
    LoadReport,
    WeightsError,
    copy_weights,
    load_weights,
    read_weights,
)
from lightning_uda.networks.wide_resnet38 import WideResNet38

__all__ = [
    "ASPP",
    "VGG",
    "ASPPClassifier",
    "Auxiliary",
    "Backbone",
    "BatchNormPolicy",
    "CaffeDeepLabV2",
    "CaffeResNet",
    "ClassRows",
    "Classifier",
    "DeepLabV2",
    "DilatedConvolutions",
    "EncoderDecoder",
    "Entry",
    "FCN8s",
    "Head",
    "InputNormalization",
    "LevelScores",
    "LoadReport",
    "Outputs",
    "ResNet38",
    "SegmentationNetwork",
    "Start",
    "TimmCNN",
    "WeightsError",
    "WideResNet38",
    "copy_weights",
    "find_checkpoint",
    "load_weights",
    "parameter_group",
    "read_weights",
    "start_from",
]
