"""The Caffe-style ResNet-101 that DACS, DSP and the AdaptSegNet family train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from lightning_uda.networks.backbones.base import Backbone
from lightning_uda.networks.base import InputNormalization, parameter_group
from lightning_uda.networks.weights import WeightsError
from lightning_uda.ranges import CHANNELS, LAYERS, ranged

_BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)
_UPDATE_REPEATS = {"stem": 1, "blocks": 3, "shortcuts": 4}


class CaffeResNet(Backbone):
    """ResNet of bottlenecks at output stride 8, as published with DACS: four levels of strides 4, 8, 8 and 8.

    Stride on the first 1x1 convolution of a block, ceil-mode pooling, one dilation for a whole stage, BGR minus mean.
    Networks with it save the names of the published state dicts: the backbone's without a beginning, the classifier's
    as `layer5`. An input of length n gives a = floor((n - 1) / 2) + 1, b = ceil((a - 1) / 2) + 1 features on the first
    level and floor((b - 1) / 2) + 1 on the others (512 -> 65).

    Groups: "backbone_stem", "backbone_blocks" and "backbone_shortcuts", with 1, 3 and 4 updates per step
    (`update_repeats`, which `RepeatedSGD` reads), as the published optimiser lists its parameters. BatchNorm scale and
    shift are in none of them unless trained, in which case they go with their convolutions.

    Args:
        blocks: Blocks in each of the four stages.
        planes: Inner channels of each stage's blocks; a stage puts out four times as many.
        stem_channels: Channels of the first convolution.
    """

    saved_names: ClassVar[Mapping[str, str]] = {"backbone.": "", "classifier.": "layer5."}

    @ranged(blocks=LAYERS, planes=CHANNELS, stem_channels=CHANNELS)
    def __init__(
        self,
        blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
        planes: tuple[int, int, int, int] = (64, 128, 256, 512),
        stem_channels: int = 64,
    ) -> None:
        channels = tuple(_Bottleneck.expansion * width for width in planes)
        super().__init__(InputNormalization(_BGR_MEAN, (1.0, 1.0, 1.0), "bgr"), (4, 8, 8, 8), channels)
        self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(stem_channels, planes[0], blocks[0], stride=1, dilation=1)
        self.layer2 = _stage(channels[0], planes[1], blocks[1], stride=2, dilation=1)
        self.layer3 = _stage(channels[1], planes[2], blocks[2], stride=1, dilation=2)
        self.layer4 = _stage(channels[2], planes[3], blocks[3], stride=1, dilation=4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.01)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the four stages (N, channels, h, w), of normalised (N, 3, H, W) inputs."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            levels.append(features)
        return tuple(levels)

    def blocks(self) -> list[nn.Module]:
        """The bottlenecks of all stages."""
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone_stem", "backbone_blocks" and "backbone_shortcuts" (DACS, as published)."""
        members: dict[str, list[nn.Parameter]] = {part: [] for part in _UPDATE_REPEATS}
        for name, parameter in self.named_parameters():
            members[_part(name)].append(parameter)
        return [
            parameter_group(f"backbone_{part}", members[part], update_repeats=repeats)
            for part, repeats in _UPDATE_REPEATS.items()
        ]

    def translate(self, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """The tensors as they are: those of a Caffe-style DeepLab-v2.

        Raises:
            WeightsError: If they are a ResNet's of another kind.
        """
        is_resnet = any(name.endswith("layer4.0.conv1.weight") for name in tensors)
        if is_resnet and not any("layer5." in name for name in tensors):
            is_classifier = any("fc." in name for name in tensors)
            kind = "with an ImageNet classifier (fc.*)" if is_classifier else "without layer5.*"
            raise WeightsError(
                f"{source}: found a ResNet {kind}, as torchvision and timm publish, expected a Caffe-style DeepLab-v2 "
                "(with layer5.*). Names and shapes are alike, but those ResNets put the stride on the 3x3 convolution "
                "and want RGB divided by a standard deviation, so they would run wrongly here. Use DeepLabV2 "
                "(backbone='resnet101', weights=...) for this file; if it is Caffe-style all the same, call "
                "load_weights on the network."
            )
        return tensors


class _Bottleneck(nn.Module):
    """Caffe-style residual block: the first 1x1 convolution carries the stride, the 3x3 one the dilation."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, dilation: int, shortcut: bool) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, planes, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if shortcut:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return cast(Tensor, self.relu(residual + self.downsample(features)))


def _stage(in_channels: int, planes: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    first = _Bottleneck(in_channels, planes, stride, dilation, shortcut=True)
    width = planes * _Bottleneck.expansion
    return nn.Sequential(first, *(_Bottleneck(width, planes, 1, dilation, shortcut=False) for _ in range(1, blocks)))


def _part(name: str) -> str:
    if ".downsample." in name:
        return "shortcuts"
    return "blocks" if name.startswith("layer") else "stem"
