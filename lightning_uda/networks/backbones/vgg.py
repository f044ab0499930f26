"""VGG made convolutional, its two hidden layers included (Long et al., CVPR 2015)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from lightning_uda.networks.backbones.base import Backbone
from lightning_uda.networks.backbones.timm_backbone import normalization_of, published_for
from lightning_uda.ranges import CHANNELS, ranged

_TORCHVISION = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2."}


class VGG(Backbone):
    """A VGG of timm with three levels of strides 8, 16 and 32: pool3, pool4 and the hidden layers.

    The two hidden fully connected layers become convolutions (7x7 and 1x1) with dropout of 0.5. Pooling rounds sizes
    up, as Caffe's does, so that any input size works: n pixels give ceil(n / 8) features on the first level.

    Args:
        name: A VGG of timm: "vgg16", "vgg11_bn", ...
        pretrained: Whether it takes its ImageNet weights, from the folder of weights or the hub, with those of the
            hidden layers if `fc_channels` is 4096.
        fc_channels: Channels of the two hidden layers.

    Raises:
        ValueError: If it is no VGG of timm.
        WeightsError: If weights can't be had or don't fit.
    """

    saved_names: ClassVar[Mapping[str, str]] = {"backbone.": ""}

    @ranged(fc_channels=CHANNELS)
    def __init__(self, name: str = "vgg16", pretrained: bool = False, fc_channels: int = 4096) -> None:
        vgg = _vgg(name)
        pool3, pool4, pool5 = (level["num_chs"] for level in vgg.feature_info[2:5])
        super().__init__(
            normalization_of(vgg.pretrained_cfg),
            strides=(8, 16, 32),
            channels=(pool3, pool4, fc_channels),
            published=published_for(vgg.pretrained_cfg),
        )
        self.features = _rounding_up(vgg.features)
        self.pre_logits = _hidden_layers(pool5, fc_channels)
        self._stages = _stages(self.features)
        self._has_hidden_layers = False
        if pretrained:
            report = self.load_published(optional_prefixes=("pre_logits.",))
            self._has_hidden_layers = "pre_logits.fc1.weight" in report.loaded

    def initialize(self) -> None:
        """He's initialisation of the hidden layers, unless they have pretrained weights."""
        for module in () if self._has_hidden_layers else self.pre_logits:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Features of pool3, pool4 and the hidden layers, of normalised (N, 3, H, W) inputs."""
        pooled, features = [], inputs
        for stage in self._stages:
            features = stage(features)
            pooled.append(features)
        return pooled[2], pooled[3], self.pre_logits(features)

    def blocks(self) -> list[nn.Module]:
        """The layers up to each pooling, and the hidden layers."""
        return [*self._stages, self.pre_logits]

    def translate(self, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """A state dict of torchvision's VGG with timm's names and shapes; any other as it is."""
        renamed = {}
        for name, tensor in tensors.items():
            old = next((prefix for prefix in _TORCHVISION if name.startswith(prefix)), None)
            if old is not None and tensor.ndim == 2:
                side = 7 if old == "classifier.0." else 1
                tensor = tensor.view(len(tensor), -1, side, side)
            renamed[name if old is None else _TORCHVISION[old] + name.removeprefix(old)] = tensor
        return renamed


def _rounding_up(features: nn.Sequential) -> nn.Sequential:
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return features


def _stages(features: nn.Sequential) -> list[nn.Sequential]:
    """The layers up to each pooling; they stay those of `features`, under its names."""
    layers = list(features)
    ends = [index + 1 for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    return [nn.Sequential(*layers[start:end]) for start, end in pairwise([0, *ends])]


def _hidden_layers(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [
        ("fc1", nn.Conv2d(in_channels, channels, 7, padding=3)),
        ("relu1", nn.ReLU(inplace=True)),
        ("dropout1", nn.Dropout(0.5)),
        ("fc2", nn.Conv2d(channels, channels, 1)),
        ("relu2", nn.ReLU(inplace=True)),
        ("dropout2", nn.Dropout(0.5)),
    ]
    return nn.Sequential(OrderedDict(layers))


def _vgg(name: str) -> Any:
    import timm  # brings wandb; networks without it start faster

    known = timm.list_models("vgg*")
    if name.split(".")[0] not in known:
        raise ValueError(f"Backbone {name!r}: FCN8s needs a VGG of timm, one of {', '.join(known)}.")
    one_channel = 1 / 4096  # of hidden layers that nobody uses
    return timm.create_model(name, pretrained=False, num_classes=0, mlp_ratio=one_channel)
