"""What a backbone declares to the network around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_uda.networks.base import InputNormalization, parameter_group
from lightning_uda.networks.published import Published, read_published
from lightning_uda.networks.weights import LoadReport, copy_weights, licence_of
from lightning_uda.resize import top_left


class Backbone(nn.Module, ABC):
    """Turns normalised images into feature levels, fine to coarse.

    Args:
        normalization: The input normalisation that its weights were trained with.
        strides: Ratio of image to feature size of each level.
        channels: Channels of each level.
        published: The pretrained weights that can be had for it, if there are any.

    Attributes:
        random_weights: False once it has got pretrained weights.
    """

    saved_names: ClassVar[Mapping[str, str]] = {}
    """Names in files, where they aren't those of the modules: beginnings of the names in a network ("backbone.",
    "classifier.") to what stands for them in state dicts of networks with this backbone. Empty: they are the same."""

    def __init__(
        self,
        normalization: InputNormalization,
        strides: Sequence[int],
        channels: Sequence[int],
        published: Published | None = None,
    ) -> None:
        super().__init__()
        self.normalization = normalization
        self.strides = tuple(strides)
        self.channels = tuple(channels)
        self.published = published
        self.random_weights = True
        self._loaded: list[str] = []

    @abstractmethod
    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature levels (N, channels, h, w), fine to coarse, of normalised (N, 3, H, W) inputs."""

    def initialize(self) -> None:
        """Draws initial weights; a network calls it once, when all its parts are made and before weights are loaded."""

    def blocks(self) -> Iterable[nn.Module]:
        """The parts that activation checkpointing computes again in the backward pass, such as residual blocks.

        Each has to give the same output for the same input and must not change its input. A backbone without any can't
        be checkpointed.
        """
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained parameters as groups whose names begin with "backbone" (see `parameter_group`)."""
        return [parameter_group("backbone", self.parameters())]

    def translate(self, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """A file's tensors under the names that this backbone's networks save them with.

        Args:
            tensors: As `read_weights` returns them.
            source: The file; used in messages.

        Raises:
            WeightsError: If they belong to a network that looks alike but computes otherwise.
        """
        return tensors

    def load_published(self, optional_prefixes: Sequence[str] = (), prefix: str = "") -> LoadReport:
        """Takes its published weights, all of them.

        Args:
            optional_prefixes: Names that begin so are copied where they fit, but needn't.
            prefix: What the names of its modules have in front of those that `translate` gives.

        Raises:
            WeightsError: If there are none, they can't be had, or they don't fit.
        """
        assert self.published is not None
        tensors, source = read_published(self.published)
        report = copy_weights(
            self,
            self.translate(tensors, source),
            source=source,
            min_share=1.0,
            optional_prefixes=optional_prefixes,
            prefix=prefix,
        )
        self.random_weights = False
        self._loaded = [f"weights: {source}: {report}; licence: {self.published.licence}"]
        return report

    def licence_of(self, weights: str) -> str:
        """The licence of a file or package of weights, in words: known of its published ones, else what is stated."""
        if self.published is not None and Path(weights).name in self.published.files:
            return self.published.licence
        return licence_of(weights)

    def notes(self) -> list[str]:
        """What a reader of a run's report should know of the backbone, a sentence each."""
        return self._loaded


def undecayed_names(module: nn.Module) -> set[str]:
    """Names of the parameters that are trained without weight decay: those of LayerNorm and the like."""
    return {
        f"{name}.{parameter}"
        for name, layer in module.named_modules()
        if "norm" in type(layer).__name__.lower() and not isinstance(layer, nn.modules.batchnorm._BatchNorm)
        for parameter, _ in layer.named_parameters(recurse=False)
    }


def backbone_groups(
    module: nn.Module, undecayed: Iterable[str], layers: Mapping[str, int] | None = None, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups "backbone" and, without weight decay, "backbone_norms"; a pair for each layer if rates decay by layers.

    A layer's rate is the last one's times `layer_decay` for each layer above it; the last layer's is `layer_decay`
    times that of what stands on the backbone (BEiT).

    Args:
        module: Whose trained parameters are grouped.
        undecayed: Names of those without weight decay.
        layers: Number of the layer that each parameter belongs to, by its name, from 0.
        layer_decay: Ratio of the learning rates of neighbouring layers.
    """
    without, numbers = set(undecayed), layers if layers and layer_decay != 1 else {}
    top = max(numbers.values(), default=-1) + 1
    members: dict[tuple[int | None, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        members.setdefault((numbers.get(name), name in without), []).append(parameter)
    groups = []
    for (number, plain), parameters in members.items():
        name = "backbone" + (f"_layer{number}" if number is not None else "") + ("_norms" if plain else "")
        scale = 1.0 if number is None else layer_decay ** (top - number)
        groups.append(parameter_group(name, parameters, scale, **({"weight_decay": 0.0} if plain else {})))
    return [group for group in groups if group["params"]]


def padded(inputs: Tensor, multiple: int) -> Tensor:
    """Images (N, 3, H, W) with zeros on the right and below, so that both sides are multiples of a number.

    Exported and compiled graphs pad by nothing where nothing is lacking, so that they hold for all sizes.
    """
    right, below = (-side % multiple for side in (inputs.shape[-1], inputs.shape[-2]))
    pads = torch.compiler.is_compiling() or right or below
    return nn.functional.pad(inputs, (0, right, 0, below)) if pads else inputs


def cropped(level: Tensor, inputs: Tensor, stride: int) -> Tensor:
    """The part of a feature level (N, channels, h, w) that covers images (N, 3, H, W), without their padding."""
    height, width = (-(-side // stride) for side in inputs.shape[-2:])
    return top_left(level, (height, width))
