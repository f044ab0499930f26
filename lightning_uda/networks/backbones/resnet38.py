"""Wide ResNet-38, model A1: the wider, shallower ResNet that CBST trains (Wu, Shen and van den Hengel, 2016)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_uda.networks.backbones.base import Backbone
from lightning_uda.networks.base import InputNormalization
from lightning_uda.ranges import CHANNELS, ranged

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


class ResNet38(Backbone):
    """Wide ResNet-38 A1 without pooling: one level of stride 8, the activated output of its last unit.

    Units are pre-activated (BatchNorm, ReLU, convolution); the first unit of a level projects its shortcut from the
    activated input. An input of length n gives ceil(n / 8) features. Normalisation is ImageNet's, RGB.

    The ImageNet weights were published for MXNet. Layers are named as in the common PyTorch conversions of them
    (`conv1a.weight`, `b2.bn_branch2a.weight`, `b4_5.conv_branch2b1.weight`, ..., `bn7.bias`), which load as they are.
    The files of Mapillary's and NVIDIA's WiderResNet38 are another network: pooling instead of strides.

    Args:
        stem_channels: Channels of the first convolution; all others are multiples of it.
    """

    saved_names: ClassVar[Mapping[str, str]] = {"backbone.layers.": "backbone."}

    @ranged(stem_channels=CHANNELS)
    def __init__(self, stem_channels: int = 64) -> None:
        super().__init__(
            InputNormalization([255 * value for value in _IMAGENET_MEAN], [255 * value for value in _IMAGENET_STD]),
            strides=(8,),
            channels=(_LEVELS["b7"].channels[-1] * stem_channels,),
        )
        self.layers = _layers(stem_channels)

    def initialize(self) -> None:
        """He's initialisation of all convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Activated output of level 7, (N, channels, h, w), of normalised (N, 3, H, W) inputs."""
        return (self.layers(inputs),)

    def blocks(self) -> list[nn.Module]:
        """The residual units."""
        return [layer for layer in self.layers if isinstance(layer, _Unit | _BottleneckUnit)]


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


def _layers(stem_channels: int) -> nn.Sequential:
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


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d | None:
    return None if in_channels == out_channels and stride == 1 else _conv(in_channels, out_channels, 1, stride)
