"""Convolutional backbones of timm, dilated."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import timm
from torch import Tensor

from lightning_uda.networks.backbones.base import Backbone
from lightning_uda.networks.backbones.efficientnet_names import has_foreign_names, to_timm_names
from lightning_uda.networks.base import InputNormalization
from lightning_uda.networks.weights import WeightsError


class TimmCNN(Backbone):
    """Any convolutional network of timm that can be dilated; input normalisation is that of its weights.

    Args:
        name: A timm name such as "resnet50" or "resnet101.a1_in1k".
        pretrained: Whether timm fetches its ImageNet weights (needs the network or timm's cache).
        output_stride: Ratio of image to feature size of the last level; what would be coarser is dilated.
        levels: Number of feature levels, the last ones of the network.

    Raises:
        ValueError: If timm doesn't know the network, can't dilate it or has fewer levels.
        WeightsError: If weights can't be fetched.
    """

    saved_names: ClassVar[Mapping[str, str]] = {"backbone.model.": "backbone."}

    def __init__(
        self, name: str = "resnet50", pretrained: bool = False, output_stride: Literal[8, 16, 32] = 8, levels: int = 4
    ) -> None:
        model = _dilated(name, output_stride, levels, pretrained)
        config = model.pretrained_cfg
        super().__init__(
            InputNormalization([255 * value for value in config["mean"]], [255 * value for value in config["std"]]),
            model.feature_info.reduction(),
            model.feature_info.channels(),
        )
        self.name = name
        self.model = model
        self.random_weights = not pretrained

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature levels (N, channels, h, w), fine to coarse, of normalised (N, 3, H, W) inputs."""
        return tuple(self.model(inputs))

    def translate(self, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """An EfficientNet-Lite of `efficientnet_pytorch` under timm's names; any other as it is.

        Raises:
            WeightsError: If they are a Caffe-style DeepLab-v2's, or an EfficientNet that isn't this backbone.
        """
        if has_foreign_names(tensors):
            return to_timm_names(tensors, self.model.state_dict(), source, self.name)
        if any("layer5." in name for name in tensors):
            raise WeightsError(
                f"{source}: found a Caffe-style DeepLab-v2 (it has layer5.*), whose blocks put the stride elsewhere "
                "and whose input is BGR minus mean; use CaffeDeepLabV2 for it, or give weights with timm's names."
            )
        return tensors


def _dilated(name: str, output_stride: int, levels: int, pretrained: bool) -> Any:
    if ":" not in name and not timm.is_model(name):
        close = get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()."
        raise ValueError(f"Backbone {name!r}: timm has no model of this name; {hint}")
    try:
        model = _features_only(name, output_stride, levels, pretrained=False)
        reduction = model.feature_info.reduction()[-1]
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
    return _pretrained(name, output_stride, levels) if pretrained else model


def _pretrained(name: str, output_stride: int, levels: int) -> Any:
    try:
        return _features_only(name, output_stride, levels, pretrained=True)
    except Exception as error:
        raise WeightsError(
            f"Backbone {name!r}: timm couldn't get its ImageNet weights ({type(error).__name__}: {error}). Check the "
            "connection, or download the state dict elsewhere and give its path as `weights` with pretrained=False."
        ) from error


def _features_only(name: str, output_stride: int, levels: int, pretrained: bool) -> Any:
    return timm.create_model(
        name,
        pretrained=pretrained,
        features_only=True,
        output_stride=output_stride,
        out_indices=tuple(range(-levels, 0)),
    )
