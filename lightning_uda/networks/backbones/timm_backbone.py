"""What all backbones of timm share: finding them, their published weights, their parameter groups."""

from __future__ import annotations

import sys
from abc import ABC
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_uda.networks.backbones.base import Backbone, backbone_groups, undecayed_names
from lightning_uda.networks.backbones.efficientnet_names import has_foreign_names, to_timm_names
from lightning_uda.networks.base import InputNormalization
from lightning_uda.networks.published import Published
from lightning_uda.networks.weights import WeightsError


class TimmBackbone(Backbone, ABC):
    """A network of timm, under timm's names; input normalisation is that of its weights.

    Args:
        name: Timm's name of it.
        model: The network, without its classifier.
        strides: Ratio of image to feature size of each level.
        channels: Channels of each level.
        pretrained: Whether it takes its published weights.
        layer_decay: Ratio of the learning rates of neighbouring layers; 1 gives all the same.

    Raises:
        ValueError: If rates are to decay, but timm doesn't say which layers there are.
        WeightsError: If weights can't be had or don't fit.
    """

    saved_names: ClassVar[Mapping[str, str]] = {"backbone.model.": "backbone."}

    def __init__(
        self,
        name: str,
        model: Any,
        strides: Iterable[int],
        channels: Iterable[int],
        pretrained: bool,
        layer_decay: float,
    ) -> None:
        super().__init__(
            normalization_of(model.pretrained_cfg), tuple(strides), tuple(channels), published_for(model.pretrained_cfg)
        )
        self.name = name
        self.model = model
        self.layer_decay = layer_decay
        if layer_decay != 1 and not hasattr(model, "group_matcher"):
            raise ValueError(
                f"Backbone {name!r}: found layer_decay={layer_decay}, but timm doesn't say which layers it has. Give "
                "layer_decay=1."
            )
        if pretrained:
            self.load_published(prefix="model.")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone" and "backbone_norms" (no weight decay), a pair for each layer if rates decay by layers."""
        from timm.models import group_parameters

        decays = self.layer_decay != 1
        layers = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True) if decays else {}
        never = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else ()
        undecayed = undecayed_names(self.model) | set(never)
        return backbone_groups(self.model, undecayed, layers, self.layer_decay)

    def translate(self, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """Files of the network's makers, and EfficientNet-Lites of `efficientnet_pytorch`, under timm's names.

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
        is_network = any(name.startswith("backbone.") for name in tensors)
        return tensors if is_network else _to_timm_names(tensors, self.model)


def create(name: str, needs: str, remedy: str, **arguments: Any) -> Any:
    """Makes a network of timm with random weights.

    Args:
        name: Timm's name, or that of a hub repository ("hf-hub:...").
        needs: What it is to be, for the message.
        remedy: What to do if it can't, for the message.
        **arguments: Timm's.

    Raises:
        ValueError: If timm doesn't know it or it doesn't take the arguments.
    """
    import timm  # brings wandb; networks without it start faster

    if ":" not in name and not timm.is_model(name):
        close = get_close_matches(name.split(".")[0], timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()."
        raise ValueError(f"Backbone {name!r}: timm has no model of this name; {hint}")
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # timm's models refuse what they don't take in many ways
        raise ValueError(
            f"Backbone {name!r}: timm can't give {needs} ({type(error).__name__}: {error}). {remedy}"
        ) from error


def normalization_of(config: Mapping[str, Any]) -> InputNormalization:
    """The input normalisation that timm's weights were trained with."""
    return InputNormalization([255 * value for value in config["mean"]], [255 * value for value in config["std"]])


def published_for(config: Mapping[str, Any]) -> Published | None:
    """The published weights of a timm network, `None` if timm knows of none.

    Args:
        config: Its `pretrained_cfg`.
    """
    hub, url = config.get("hf_hub_id"), config.get("url")
    if not hub and not url:
        return None
    name = ".".join(filter(None, (config["architecture"], config.get("tag"))))
    return Published(name, config.get("license") or "not stated by timm", hub, url)


def _to_timm_names(tensors: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """What timm itself makes of a file for this network, such as of the one that the network's makers published."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        return tensors if convert is None else dict(convert(dict(tensors), model))
    except (KeyError, AttributeError, RuntimeError, TypeError):  # a file of another network: the comparison says so
        return tensors
