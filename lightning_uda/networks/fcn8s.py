"""FCN-8s: VGG made convolutional, its scores at three strides added up (Long et al., CVPR 2015)."""

from __future__ import annotations

from lightning_uda.networks.backbones import VGG
from lightning_uda.networks.base import BatchNormPolicy
from lightning_uda.networks.encoder_decoder import EncoderDecoder
from lightning_uda.networks.heads import LevelScores
from lightning_uda.ranges import CHANNELS, ranged


class FCN8s(EncoderDecoder):
    """FCN-8s on a VGG of timm: `VGG` with `LevelScores`.

    Where it differs from the published network: 7x7 convolution padded by 3 instead of an input padded by 100, so that
    nothing is shifted or cropped; doublings fixed at bilinear instead of learned from there. An input of length n gives
    ceil(n / 8) logits.

    Args:
        num_classes: Number of output channels.
        backbone: A VGG of timm: "vgg16", "vgg11_bn", ...
        pretrained: Whether it takes its ImageNet weights, from the folder of weights or the hub, with those of the
            hidden layers if `fc_channels` is 4096.
        weights: Path of weights to load: a checkpoint of this network, or an ImageNet state dict of timm or
            torchvision.
        fc_channels: Channels of the two hidden layers.
        batch_norm: See `SegmentationNetwork`; of no effect on a VGG without BatchNorm.
        classifier_lr_scale: Learning rate of the classifier as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifier that `weights` has to provide.
        checkpointing: Whether the backbone's blocks are computed again in the backward pass, which saves memory.

    Raises:
        ValueError: If the backbone is no VGG of timm.
        WeightsError: If weights can't be had, read or don't fit.
    """

    @ranged(fc_channels=CHANNELS)
    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        pretrained: bool = False,
        weights: str | None = None,
        fc_channels: int = 4096,
        batch_norm: BatchNormPolicy = "train",
        classifier_lr_scale: float = 1.0,
        min_loaded: float = 0.9,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            VGG(backbone, pretrained, fc_channels),
            LevelScores(),
            weights=weights,
            batch_norm=batch_norm,
            classifier_lr_scale=classifier_lr_scale,
            min_loaded=min_loaded,
            checkpointing=checkpointing,
        )
