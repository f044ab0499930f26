"""Wide ResNet-38, model A1: the wider, shallower ResNet that CBST trains (Wu, Shen and van den Hengel, 2016)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_uda.networks.base import BatchNormPolicy, InputNormalization, SegmentationNetwork
from lightning_uda.networks.weights import copy_weights, read_weights

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1.001e-5


class _Level(NamedTuple):
    """Units of one width; channels are multiples of the stem's."""

    units: int
    channels: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    dropout: float = 0.0


_LEVELS = {
    "b2": _Level(3, (2, 2), stride=2),
    "b3": _Level(3, (4, 4), stride=2),
    "b4": _Level(6, (8, 8), stride=2),
    "b5": _Level(3, (8, 16), dilation=2),
    "b6": _Level(1, (8, 16, 32), dilation=4, dropout=0.3),
    "b7": _Level(1, (16, 32, 64), dilation=4, dropout=0.5),
}
_HEAD_CHANNELS, _HEAD_DILATION = 8, 12


class WideResNet38(SegmentationNetwork):
    """Wide ResNet-38 A1 with two dilated convolutions as its head: 124 million weights, no pooling, output stride 8.

    Units are pre-activated (BatchNorm, ReLU, convolution); the first unit of a level projects its shortcut from the
    activated input. An input of length n gives ceil(n / 8) logits. Normalisation is ImageNet's, RGB.

    The ImageNet weights were published for MXNet. Layers are named as in the common PyTorch conversions of them
    (`conv1a.weight`, `b2.bn_branch2a.weight`, `b4_5.conv_branch2b1.weight`, ..., `bn7.bias`), which load as they are.
    The files of Mapillary's and NVIDIA's WiderResNet38 are another network: pooling instead of strides.

    Groups, as CBST's MXNet program has them: "backbone" and "classifier" (weights and scales), "backbone_shifts" and
    "classifier_shifts" (biases and BatchNorm's shifts, at twice the rate and without weight decay).

    Args:
        num_classes: Number of output channels.
        weights: Path of weights to load: a checkpoint of this network or an ImageNet state dict of the backbone with
            the names above. A classifier of other shape is skipped.
        stem_channels: Channels of the first convolution; all others are multiples of it.
        batch_norm: See `SegmentationNetwork`. With "frozen_statistics" (CBST) give `weights`, or train from scratch
            with "train".
        classifier_lr_scale: Learning rate of the classifier as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifier that `weights` has to provide.

    Raises:
        WeightsError: If weights can't be read or don't fit.
    """

    def __init__(
        self,
        num_classes: int,
        weights: str | None = None,
        stem_channels: int = 64,
        batch_norm: BatchNormPolicy = "frozen_statistics",
        classifier_lr_scale: float = 1.0,
        min_loaded: float = 0.9,
    ) -> None:
        super().__init__(
            num_classes,
            InputNormalization([255 * value for value in _IMAGENET_MEAN], [255 * value for value in _IMAGENET_STD]),
            output_stride=8,
            feature_channels=_LEVELS["b7"].channels[-1] * stem_channels,
            batch_norm=batch_norm,
        )
        self.classifier_lr_scale = classifier_lr_scale
        self.backbone = _backbone(stem_channels)
        self.classifier = _head(self.feature_channels, _HEAD_CHANNELS * stem_channels, num_classes)
        self._initialize_convolutions()
        if weights is not None:
            copy_weights(
                self,
                read_weights(weights),
                source=weights,
                min_share=min_loaded,
                optional_prefixes=("classifier.",),
                prefix="backbone.",
            )
        self.apply_batch_norm_policy()

    def encode(self, inputs: Tensor) -> Tensor:
        """Activated output of level 7, (N, feature_channels, h, w), of normalised (N, 3, H, W) inputs."""
        return cast(Tensor, self.backbone(inputs))

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of features."""
        return cast(Tensor, self.classifier(features))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone", "backbone_shifts", "classifier" and "classifier_shifts"."""
        groups: list[dict[str, Any]] = []
        for name, part, scale in (
            ("backbone", self.backbone, 1.0),
            ("classifier", self.classifier, self.classifier_lr_scale),
        ):
            trainable = [(key, parameter) for key, parameter in part.named_parameters() if parameter.requires_grad]
            weights = [parameter for key, parameter in trainable if not key.endswith("bias")]
            shifts = [parameter for key, parameter in trainable if key.endswith("bias")]
            groups.append({"name": name, "params": weights, "lr_scale": scale, "update_repeats": 1})
            groups.append(
                {
                    "name": f"{name}_shifts",
                    "params": shifts,
                    "lr_scale": 2 * scale,
                    "update_repeats": 1,
                    "weight_decay": 0.0,
                }
            )
        return groups

    def _initialize_convolutions(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class _Unit(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, and a shortcut."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        inner, out_channels = channels
        self.bn_branch2a = nn.BatchNorm2d(in_channels, eps=_EPS)
        self.conv_branch2a = _conv(in_channels, inner, 3, stride, dilations[0])
        self.bn_branch2b1 = nn.BatchNorm2d(inner, eps=_EPS)
        self.conv_branch2b1 = _conv(inner, out_channels, 3, dilation=dilations[1])
        self.conv_branch1 = _projection(in_channels, out_channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        activated = F.relu(self.bn_branch2a(features), inplace=True)
        shortcut = features if self.conv_branch1 is None else self.conv_branch1(activated)
        residual = self.conv_branch2a(activated)
        residual = self.conv_branch2b1(F.relu(self.bn_branch2b1(residual), inplace=True))
        return cast(Tensor, shortcut + residual)


class _BottleneckUnit(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, each after BatchNorm and ReLU, with dropout before the last, and a shortcut."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], dilation: int, dropout: float) -> None:
        super().__init__()
        first, second, out_channels = channels
        self.bn_branch2a = nn.BatchNorm2d(in_channels, eps=_EPS)
        self.conv_branch2a = _conv(in_channels, first, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(first, eps=_EPS)
        self.conv_branch2b1 = _conv(first, second, 3, dilation=dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(second, eps=_EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv_branch2b2 = _conv(second, out_channels, 1)
        self.conv_branch1 = _conv(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        activated = F.relu(self.bn_branch2a(features), inplace=True)
        residual = self.conv_branch2a(activated)
        residual = self.conv_branch2b1(F.relu(self.bn_branch2b1(residual), inplace=True))
        residual = self.conv_branch2b2(self.dropout(F.relu(self.bn_branch2b2(residual), inplace=True)))
        return cast(Tensor, self.conv_branch1(activated) + residual)


def _backbone(stem_channels: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv1a=_conv(3, stem_channels, 3))
    in_channels = stem_channels
    for name, level in _LEVELS.items():
        channels = tuple(multiple * stem_channels for multiple in level.channels)
        for index in range(level.units):
            first = index == 0
            key = name if first else f"{name}_{index}"
            if len(channels) == 2:
                dilations = (1 if first else level.dilation, level.dilation)
                layers[key] = _Unit(in_channels, channels, level.stride if first else 1, dilations)
            else:
                layers[key] = _BottleneckUnit(in_channels, channels, level.dilation, level.dropout)
            in_channels = channels[-1]
    layers["bn7"] = nn.BatchNorm2d(in_channels, eps=_EPS)
    layers["relu7"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _head(in_channels: int, channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=_HEAD_DILATION, dilation=_HEAD_DILATION),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, num_classes, 3, padding=_HEAD_DILATION, dilation=_HEAD_DILATION),
    )


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d | None:
    return None if in_channels == out_channels and stride == 1 else _conv(in_channels, out_channels, 1, stride)
