"""DeepLab-v2: a dilated backbone and a sum of dilated convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, cast

import timm
from torch import Tensor, nn

from lightning_uda.networks.base import BatchNormPolicy, InputNormalization, SegmentationNetwork
from lightning_uda.networks.weights import WeightsError, copy_weights, read_weights

_CAFFE_BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)
_CAFFE_BRANCHES = (6, 12, 18, 24)


class ASPPClassifier(nn.Module):
    """Parallel dilated 3x3 convolutions with bias, summed (atrous spatial pyramid pooling of DeepLab-v2).

    Weights start from N(0, 0.01^2), biases from PyTorch's default. Branches that aren't summed can be held as well,
    so that the names of published weights fit; they are out of the graph and take no gradient.

    Args:
        in_channels: Channels of the features.
        num_classes: Number of output channels.
        dilations: Dilation (and padding) of each branch that is built.
        summed: The dilations whose branches make the logits; by default all of `dilations`.

    Raises:
        ValueError: If no branch is summed, one is named twice, or one isn't built.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dilations: Sequence[int] = (6, 12),
        summed: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        dilations = tuple(dilations)
        self.summed = dilations if summed is None else tuple(summed)
        _check_dilations(dilations, self.summed)
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self._summed_indices = [dilations.index(dilation) for dilation in self.summed]
        for index, branch in enumerate(self.conv2d_list):
            nn.init.normal_(cast(nn.Conv2d, branch).weight, 0.0, 0.01)
            branch.requires_grad_(index in self._summed_indices)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of features (N, in_channels, h, w)."""
        first, *others = self._summed_indices
        logits: Tensor = self.conv2d_list[first](features)
        for index in others:
            logits = logits + self.conv2d_list[index](features)
        return logits


class DeepLabV2(SegmentationNetwork):
    """DeepLab-v2 on any timm backbone that can be dilated; input normalisation is that of the backbone's weights.

    Groups: "backbone" and "classifier", the latter with a rate of its own.

    Args:
        num_classes: Number of output channels.
        backbone: A timm name such as "resnet50" or "resnet101.a1_in1k".
        pretrained: Whether timm fetches its ImageNet weights (needs the network or timm's cache).
        weights: Path of weights to load: a checkpoint of this network, or an ImageNet state dict of the backbone with
            timm's names (a classifier of other shape is skipped).
        dilations: Dilations of the classifier's branches.
        output_stride: Ratio of input to logit size.
        batch_norm: See `SegmentationNetwork`.
        classifier_lr_scale: Learning rate of the classifier as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifier that `weights` has to provide.

    Raises:
        ValueError: If timm doesn't know the backbone or can't dilate it.
        WeightsError: If weights can't be fetched, read or don't fit.
    """

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
    ) -> None:
        encoder = _dilated_backbone(backbone, output_stride, pretrained)
        config = encoder.pretrained_cfg
        super().__init__(
            num_classes,
            InputNormalization([255 * value for value in config["mean"]], [255 * value for value in config["std"]]),
            output_stride,
            encoder.feature_info.channels()[-1],
            batch_norm,
        )
        self.classifier_lr_scale = classifier_lr_scale
        self.backbone = encoder
        self.classifier = ASPPClassifier(self.feature_channels, num_classes, dilations)
        if weights is not None:
            self._load(weights, min_loaded)
        self.apply_batch_norm_policy()

    def encode(self, inputs: Tensor) -> Tensor:
        """Last feature level of the backbone, (N, feature_channels, h, w), of normalised (N, 3, H, W) inputs."""
        return cast(Tensor, self.backbone(inputs)[-1])

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of features."""
        return cast(Tensor, self.classifier(features))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone" (the base rate) and "classifier" (`classifier_lr_scale` times the base rate)."""
        return [
            _group("backbone", self.backbone.parameters()),
            _group("classifier", self.classifier.parameters(), lr_scale=self.classifier_lr_scale),
        ]

    def _load(self, weights: str, min_loaded: float) -> None:
        tensors = read_weights(weights)
        if any("layer5." in name for name in tensors):
            raise WeightsError(
                f"{weights}: found a Caffe-style DeepLab-v2 (it has layer5.*), whose blocks put the stride elsewhere "
                "and whose input is BGR minus mean; use CaffeDeepLabV2 for it, or give weights with timm's names."
            )
        copy_weights(
            self,
            tensors,
            source=weights,
            min_share=min_loaded,
            optional_prefixes=("classifier.",),
            prefix="backbone.",
        )


class CaffeDeepLabV2(SegmentationNetwork):
    """DeepLab-v2 with the Caffe-style ResNet-101 that DACS, DSP and the AdaptSegNet family train.

    Follows the published DACS program: stride on the first 1x1 convolution of a block, ceil-mode pooling, one dilation
    for a whole stage, names of the published state dicts. An input of length n gives
    a = floor((n - 1) / 2) + 1, b = ceil((a - 1) / 2) + 1, floor((b - 1) / 2) + 1 logits (512 -> 65).

    The classifier always holds the four published branches (dilations 6, 12, 18, 24), so that every published file fits
    and saved files carry all 632 names; `dilations` picks those that are summed. The published program sums two (an
    early return) and leaves the others in the optimiser, where, lacking gradients, they never move. Here the
    others take no gradient and are in no group: the same training, and no unused parameters under DDP.

    Groups: "backbone_stem", "backbone_blocks", "backbone_shortcuts" and "classifier", with 1, 3, 4 and 1 updates per
    step (`update_repeats`), as the published optimiser lists its parameters. BatchNorm scale and shift are in none of
    them unless trained (`batch_norm="train"`), in which case they go with their convolutions.

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
        classifier_lr_scale: Learning rate of the classifier as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifier that `weights` has to provide.

    Raises:
        ValueError: If `dilations` is empty, repeats a branch or names one that doesn't exist.
        WeightsError: If weights can't be read, don't fit, or are those of a ResNet of another kind.
    """

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
    ) -> None:
        super().__init__(
            num_classes,
            InputNormalization(_CAFFE_BGR_MEAN, (1.0, 1.0, 1.0), "bgr"),
            output_stride=8,
            feature_channels=planes[3] * _Bottleneck.expansion,
            batch_norm=batch_norm,
        )
        self.classifier_lr_scale = classifier_lr_scale
        widths = [stem_channels, *(_Bottleneck.expansion * width for width in planes)]
        self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(widths[0], planes[0], blocks[0], stride=1, dilation=1)
        self.layer2 = _stage(widths[1], planes[1], blocks[1], stride=2, dilation=1)
        self.layer3 = _stage(widths[2], planes[2], blocks[2], stride=1, dilation=2)
        self.layer4 = _stage(widths[3], planes[3], blocks[3], stride=1, dilation=4)
        self._initialize_convolutions()
        self.layer5 = ASPPClassifier(widths[4], num_classes, _CAFFE_BRANCHES, summed=dilations)
        if weights is not None:
            self._load(weights, min_loaded)
        self.apply_batch_norm_policy()

    def encode(self, inputs: Tensor) -> Tensor:
        """Output of the last stage, (N, 4 * planes[3], h, w), of normalised (N, 3, H, W) inputs."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        return cast(Tensor, features)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of features."""
        return cast(Tensor, self.layer5(features))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone_stem", "backbone_blocks", "backbone_shortcuts" and "classifier" (DACS, as published)."""
        members: dict[str, list[nn.Parameter]] = {"stem": [], "blocks": [], "shortcuts": [], "classifier": []}
        for name, parameter in self.named_parameters():
            members[_part(name)].append(parameter)
        return [
            _group("backbone_stem", members["stem"], update_repeats=1),
            _group("backbone_blocks", members["blocks"], update_repeats=3),
            _group("backbone_shortcuts", members["shortcuts"], update_repeats=4),
            _group("classifier", members["classifier"], lr_scale=self.classifier_lr_scale),
        ]

    def _initialize_convolutions(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.01)

    def _load(self, weights: str, min_loaded: float) -> None:
        tensors = read_weights(weights)
        _refuse_other_resnet(tensors, weights)
        copy_weights(self, tensors, source=weights, min_share=min_loaded, optional_prefixes=("layer5.",))


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
    if name.startswith("layer5."):
        return "classifier"
    if ".downsample." in name:
        return "shortcuts"
    return "blocks" if name.startswith("layer") else "stem"


def _group(
    name: str, parameters: Iterable[nn.Parameter], *, lr_scale: float = 1.0, update_repeats: int = 1
) -> dict[str, Any]:
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return {"name": name, "params": trainable, "lr_scale": lr_scale, "update_repeats": update_repeats}


def _check_dilations(built: tuple[int, ...], summed: tuple[int, ...]) -> None:
    if not summed or len(set(summed)) != len(summed) or len(set(built)) != len(built) or not set(summed) <= set(built):
        raise ValueError(
            f"Dilations of the classifier: found branches {built}, of which {summed} are summed; expected distinct "
            "branches and at least one of them summed, e.g. (6, 12) or (6, 12, 18, 24)."
        )


def _dilated_backbone(name: str, output_stride: int, pretrained: bool) -> Any:
    if ":" not in name and not timm.is_model(name):
        close = get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()."
        raise ValueError(f"Backbone {name!r}: timm has no model of this name; {hint}")
    try:
        backbone = _features_only(name, output_stride, pretrained=False)
        reduction = backbone.feature_info.reduction()[-1]
    except Exception as error:
        raise ValueError(
            f"Backbone {name!r}: timm can't give its feature levels with output stride {output_stride} "
            f"({type(error).__name__}: {error}). Choose a convolutional backbone that can be dilated, such as "
            "resnet50, resnet101, regnety_032, convnext_tiny or mobilenetv3_large_100."
        ) from error
    if reduction != output_stride:
        raise ValueError(
            f"Backbone {name!r}: found an output stride of {reduction}, expected {output_stride}; ask for "
            f"output_stride={reduction} or take another backbone."
        )
    return _pretrained_backbone(name, output_stride) if pretrained else backbone


def _pretrained_backbone(name: str, output_stride: int) -> Any:
    try:
        return _features_only(name, output_stride, pretrained=True)
    except Exception as error:
        raise WeightsError(
            f"Backbone {name!r}: timm couldn't get its ImageNet weights ({type(error).__name__}: {error}). Check the "
            "connection, or download the state dict elsewhere and give its path as `weights` with pretrained=False."
        ) from error


def _features_only(name: str, output_stride: int, pretrained: bool) -> Any:
    return timm.create_model(
        name, pretrained=pretrained, features_only=True, output_stride=output_stride, out_indices=(-1,)
    )


def _refuse_other_resnet(tensors: Mapping[str, Tensor], path: str) -> None:
    is_resnet = any(name.endswith("layer4.0.conv1.weight") for name in tensors)
    if is_resnet and not any("layer5." in name for name in tensors):
        kind = "with an ImageNet classifier (fc.*)" if any("fc." in name for name in tensors) else "without layer5.*"
        raise WeightsError(
            f"{path}: found a ResNet {kind}, as torchvision and timm publish, expected a Caffe-style DeepLab-v2 (with "
            "layer5.*). Names and shapes are alike, but those ResNets put the stride on the 3x3 convolution and want "
            "RGB divided by a standard deviation, so they would run wrongly here. Use DeepLabV2 (backbone='resnet101', "
            "weights=...) for this file; if it is Caffe-style all the same, call load_weights on the network."
        )
