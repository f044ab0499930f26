"""Segmentation networks, the backbones and heads they are made of, and the loading of their weights."""

from lightning_uda.networks.backbones import VGG, Backbone, CaffeResNet, MiT, ResNet38, TimmPyramid, TimmViT
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
from lightning_uda.networks.heads import (
    ASPP,
    ASPPClassifier,
    DAFormerHead,
    DilatedConvolutions,
    Head,
    LevelScores,
    LinearHead,
    SegFormerHead,
)
from lightning_uda.networks.hrda import HRDA
from lightning_uda.networks.published import Published, read_published
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
from lightning_uda.networks.wrapped import WrappedNetwork, from_transformers

__all__ = [
    "ASPP",
    "HRDA",
    "VGG",
    "ASPPClassifier",
    "Auxiliary",
    "Backbone",
    "BatchNormPolicy",
    "CaffeDeepLabV2",
    "CaffeResNet",
    "ClassRows",
    "Classifier",
    "DAFormerHead",
    "DeepLabV2",
    "DilatedConvolutions",
    "EncoderDecoder",
    "Entry",
    "FCN8s",
    "Head",
    "InputNormalization",
    "LevelScores",
    "LinearHead",
    "LoadReport",
    "MiT",
    "Outputs",
    "Published",
    "ResNet38",
    "SegFormerHead",
    "SegmentationNetwork",
    "Start",
    "TimmPyramid",
    "TimmViT",
    "WeightsError",
    "WideResNet38",
    "WrappedNetwork",
    "copy_weights",
    "find_checkpoint",
    "from_transformers",
    "load_weights",
    "parameter_group",
    "read_published",
    "read_weights",
    "start_from",
]
