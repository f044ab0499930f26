"""FCN-8s: VGG made convolutional, its scores at three strides added up (Long et al., CVPR 2015)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_uda.networks.base import BatchNormPolicy, InputNormalization, SegmentationNetwork
from lightning_uda.networks.weights import WeightsError, copy_weights, read_weights

_TORCHVISION = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2."}


class FCN8s(SegmentationNetwork):
    """FCN-8s on a VGG of timm.

    VGG's two hidden fully connected layers become convolutions (7x7 and 1x1) with dropout of 0.5; the scores of what
    they give are doubled in size and added to those of pool4, these doubled and added to those of pool3. A 1x1 score
    and a bilinear doubling can change places, so all three scores are here one 1x1 convolution of the stacked features
    of stride 8: the same logits, and features of one size for whatever reads them.

    Where it differs from the published network: 7x7 convolution padded by 3 instead of an input padded by 100, so that
    nothing is shifted or cropped; doublings fixed at bilinear instead of learned from there; pooling rounds sizes up,
    as Caffe's does, so that any input size works. An input of length n gives ceil(n / 8) logits.

    Groups: "backbone" (VGG with its two hidden layers) and "classifier".

    Args:
        num_classes: Number of output channels.
        backbone: A VGG of timm: "vgg16", "vgg11_bn", ...
        pretrained: Whether timm fetches its ImageNet weights (needs the network or timm's cache), with those of the
            hidden layers if `fc_channels` is 4096.
        weights: Path of weights to load: a checkpoint of this network, or an ImageNet state dict of timm or
            torchvision.
        fc_channels: Channels of the two hidden layers.
        batch_norm: See `SegmentationNetwork`; of no effect on a VGG without BatchNorm.
        classifier_lr_scale: Learning rate of the classifier as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifier that `weights` has to provide.

    Raises:
        ValueError: If the backbone is no VGG of timm.
        WeightsError: If weights can't be fetched, read or don't fit.
    """

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
    ) -> None:
        vgg = _vgg(backbone, pretrained)
        pool3, pool4, pool5 = (level["num_chs"] for level in vgg.feature_info[2:5])
        config = vgg.pretrained_cfg
        super().__init__(
            num_classes,
            InputNormalization([255 * value for value in config["mean"]], [255 * value for value in config["std"]]),
            output_stride=8,
            feature_channels=pool3 + pool4 + fc_channels,
            batch_norm=batch_norm,
        )
        self.classifier_lr_scale = classifier_lr_scale
        self.features = _rounding_up(vgg.features)
        self.pre_logits = _hidden_layers(pool5, fc_channels)
        self.classifier = nn.Conv2d(self.feature_channels, num_classes, 1)
        self._initialize()
        if pretrained and vgg.pre_logits.fc2.out_channels == fc_channels:
            self.pre_logits.load_state_dict(vgg.pre_logits.state_dict())
        if weights is not None:
            tensors = _names_of_timm(read_weights(weights))
            copy_weights(self, tensors, source=weights, min_share=min_loaded, optional_prefixes=("classifier.",))
        self.apply_batch_norm_policy()

    def encode(self, inputs: Tensor) -> Tensor:
        """Features of pool3, pool4 and the hidden layers, stacked at stride 8: (N, feature_channels, h, w)."""
        pooled = []
        features = inputs
        for layer in self.features:
            features = layer(features)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(features)
        stride16 = torch.cat([pooled[3], _doubled(self.pre_logits(features), pooled[3])], dim=1)
        return torch.cat([pooled[2], _doubled(stride16, pooled[2])], dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of features."""
        return cast(Tensor, self.classifier(features))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone" (the base rate) and "classifier" (`classifier_lr_scale` times the base rate)."""
        backbone = [*self.features.parameters(), *self.pre_logits.parameters()]
        trainable = [parameter for parameter in backbone if parameter.requires_grad]
        classifier = list(self.classifier.parameters())
        return [
            {"name": "backbone", "params": trainable, "lr_scale": 1.0, "update_repeats": 1},
            {"name": "classifier", "params": classifier, "lr_scale": self.classifier_lr_scale, "update_repeats": 1},
        ]

    def _initialize(self) -> None:
        for module in self.pre_logits:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(cast(Tensor, self.classifier.bias))


def _rounding_up(features: nn.Sequential) -> nn.Sequential:
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return features


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


def _doubled(features: Tensor, like: Tensor) -> Tensor:
    """Twice the size, bilinear, without the last row or column where `like` (N, ..., h, w) has an odd side."""
    doubled = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
    return doubled[..., : like.shape[-2], : like.shape[-1]]


def _vgg(name: str, pretrained: bool) -> Any:
    known = timm.list_models("vgg*")
    if name.split(".")[0] not in known:
        raise ValueError(f"Backbone {name!r}: FCN8s needs a VGG of timm, one of {', '.join(known)}.")
    if not pretrained:
        one_channel = 1 / 4096  # of hidden layers that nobody uses
        return timm.create_model(name, pretrained=False, num_classes=0, mlp_ratio=one_channel)
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise WeightsError(
            f"Backbone {name!r}: timm couldn't get its ImageNet weights ({type(error).__name__}: {error}). Check the "
            "connection, or download the state dict elsewhere and give its path as `weights` with pretrained=False."
        ) from error


def _names_of_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's VGG with timm's names and shapes; any other as it is."""
    renamed = {}
    for name, tensor in tensors.items():
        old = next((prefix for prefix in _TORCHVISION if name.startswith(prefix)), None)
        if old is not None and tensor.ndim == 2:
            side = 7 if old == "classifier.0." else 1
            tensor = tensor.view(len(tensor), -1, side, side)
        renamed[name if old is None else _TORCHVISION[old] + name.removeprefix(old)] = tensor
    return renamed
