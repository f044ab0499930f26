"""A network of one backbone and a head, with auxiliary heads where a method wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_uda.networks.backbones import Backbone
from lightning_uda.networks.base import BatchNormPolicy, Classifier, Outputs, SegmentationNetwork, parameter_group
from lightning_uda.networks.checkpointing import recompute
from lightning_uda.networks.heads import Head
from lightning_uda.networks.weights import copy_weights, read_weights
from lightning_uda.ranges import NOT_NEGATIVE, SHARE, ranged, require


@dataclass(frozen=True)
class Auxiliary:
    """A further classifier, for training only.

    Args:
        head: What it is; it is given the levels up to `level`.
        level: The feature level that it reads, counted as in Python's lists: -2 is the last but one.
        weight: Weight of its loss.
    """

    head: Head
    level: int = -2
    weight: float = 0.1

    def __post_init__(self) -> None:
        """Requires a weight that is a number of 0 or more."""
        require(NOT_NEGATIVE, self.weight, "Auxiliary.weight")


class EncoderDecoder(SegmentationNetwork):
    """Any backbone with any head.

    State dicts hold the parts as "backbone", "classifier" and "auxiliary", or under the names that published files of
    the backbone have (`Backbone.saved_names`).

    Groups: those of the backbone, "classifier" and, if there are any, "auxiliary"; the latter two with a rate of their
    own.

    Args:
        num_classes: Number of output channels.
        backbone: What makes the feature levels; the network takes it over.
        head: What makes the logits of them.
        auxiliary: Further classifiers that are taught beside the main one.
        weights: Path of weights to load: a checkpoint of this network, or a state dict of the backbone alone with the
            names it is published with. A classifier of other shape is skipped.
        batch_norm: See `SegmentationNetwork`.
        classifier_lr_scale: Learning rate of all classifiers as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifiers that `weights` has to provide.
        align_corners: How logits are upsampled for the losses; `None` leaves it to the head.
        checkpointing: Whether the backbone's blocks forget what they computed inside and compute it again in the
            backward pass, which costs a further forward pass and saves much memory. Gradients and running statistics
            stay the same.

    Raises:
        ValueError: If the head's settings don't go with the backbone's levels, an auxiliary reads one that isn't
            there, or a backbone without blocks is to be checkpointed.
        WeightsError: If weights can't be read, don't fit, or are those of a network that only looks alike.
    """

    heads: ClassVar[tuple[str, ...]] = ("classifier.", "auxiliary.")
    """Beginnings of the names of the parts that stand on the backbone, which a file of weights needn't hold."""

    @ranged(classifier_lr_scale=NOT_NEGATIVE, min_loaded=SHARE)
    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        head: Head,
        auxiliary: Sequence[Auxiliary] = (),
        weights: str | None = None,
        batch_norm: BatchNormPolicy = "train",
        classifier_lr_scale: float = 10.0,
        min_loaded: float = 0.9,
        align_corners: bool | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            backbone.normalization,
            backbone.strides,
            backbone.channels,
            batch_norm,
            head.align_corners if align_corners is None else align_corners,
        )
        self.classifier_lr_scale = classifier_lr_scale
        self.head = head
        self.auxiliary_heads = tuple(auxiliary)
        self.backbone = backbone
        self.classifier = self._build(head, len(self.channels))
        self.auxiliary = nn.ModuleList(self._build(each.head, self._given(each)) for each in auxiliary)
        self.random_weights = backbone.random_weights
        self.names = {name: name for name in ("backbone.", *self.heads, "attached.")} | dict(backbone.saved_names)
        self.class_rows = tuple(self._class_rows())
        self.register_state_dict_post_hook(_to_saved_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_saved_names)  # type: ignore[no-untyped-call]
        backbone.initialize()
        head.initialize(self.classifier)
        for each, classifier in zip(auxiliary, self.auxiliary, strict=True):
            each.head.initialize(classifier)
        self._loaded: list[str] = []
        if weights is not None:
            self._load(weights, min_loaded)
        if checkpointing:
            self._recompute_blocks()
        self.apply_batch_norm_policy()

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature levels, fine to coarse, of RGB images (N, 3, H, W) in [0, 1]."""
        levels: tuple[Tensor, ...] = self.backbone(self.normalized(image))
        return levels

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (N, num_classes, h, w) of the main classifier, of feature levels."""
        logits: Tensor = self.classifier(levels)
        return logits

    def decode_auxiliary(self, levels: Sequence[Tensor]) -> tuple[Classifier, ...]:
        """What the auxiliary classifiers make of feature levels, with their weights."""
        return tuple(
            Classifier(classifier(levels[: self._given(each)]), each.weight)
            for each, classifier in zip(self.auxiliary_heads, self.auxiliary, strict=True)
        )

    def logits_and_levels(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (N, num_classes, h, w) of the main classifier, and levels, of RGB images (N, 3, H, W) in [0, 1]."""
        levels = self.encode(image)
        return self.decode(levels), levels

    def outputs(self, image: Tensor) -> Outputs:
        """The main classifier's logits, then those of the auxiliary ones with their weights."""
        levels = self.encode(image)
        return Outputs((Classifier(self.decode(levels)), *self.decode_auxiliary(levels)), levels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of the backbone, "classifier" and "auxiliary" (`classifier_lr_scale` times the base rate)."""
        groups = [
            *self.backbone.parameter_groups(),
            parameter_group("classifier", self.classifier.parameters(), self.classifier_lr_scale),
        ]
        if self.auxiliary_heads:
            groups.append(parameter_group("auxiliary", self.auxiliary.parameters(), self.classifier_lr_scale))
        return groups

    def notes(self) -> list[str]:
        """Which weights were loaded, what the parts have to say, and which auxiliary classifiers there are."""
        auxiliary = (
            f"Auxiliary classifier: {type(each.head).__name__} of level {each.level}, weight {each.weight:g}"
            for each in self.auxiliary_heads
        )
        return [*self.backbone.notes(), *self._loaded, *self.head.notes(), *auxiliary]

    def _load(self, weights: str, min_loaded: float) -> None:
        report = copy_weights(
            self,
            self.backbone.translate(read_weights(weights), weights),
            source=weights,
            min_share=min_loaded,
            optional_prefixes=[self.names[head] for head in self.heads],
            prefix=self.names["backbone."],
        )
        self._loaded = [f"weights: {weights}: {report}; licence: {self.backbone.licence_of(weights)}"]

    def _recompute_blocks(self) -> None:
        blocks = list(self.backbone.blocks())
        if not blocks:
            raise ValueError(
                f"Found checkpointing=True, but {type(self.backbone).__name__} names no blocks to be computed again. "
                "Leave it out, or take another backbone."
            )
        for block in blocks:
            recompute(block)

    def _build(self, head: Head, levels: int) -> nn.Module:
        return head.build(self.channels[:levels], self.strides[:levels], self.num_classes)

    def _class_rows(self) -> Iterator[str]:
        yield from (self.names["classifier."] + layer for layer in self.head.class_rows)
        for i, each in enumerate(self.auxiliary_heads):
            yield from (f"{self.names['auxiliary.']}{i}.{layer}" for layer in each.head.class_rows)

    def _given(self, auxiliary: Auxiliary) -> int:
        """How many levels an auxiliary classifier is given."""
        levels, level = len(self.channels), auxiliary.level
        if not -levels <= level < levels:
            raise ValueError(
                f"Auxiliary: found level={level}, but {type(self.backbone).__name__} has {levels} level(s), of strides "
                f"{self.strides}. Give one from {-levels} to {levels - 1}, or a backbone with more levels."
            )
        return level % levels + 1


def _to_saved_names(network: EncoderDecoder, state: dict[str, Any], prefix: str, _: object) -> None:
    _rename(state, prefix, network.names)


def _from_saved_names(network: EncoderDecoder, state: dict[str, Any], prefix: str, *_: object) -> None:
    _rename(state, prefix, {saved: module for module, saved in network.names.items()})


def _rename(state: dict[str, Any], prefix: str, beginnings: Mapping[str, str]) -> None:
    """Exchanges the longest beginning that is known of each name behind `prefix`, and keeps the order."""
    for name in [name for name in state if name.startswith(prefix)]:
        inner = name.removeprefix(prefix)
        old = max((each for each in beginnings if inner.startswith(each)), key=len, default="")
        state[prefix + beginnings.get(old, "") + inner.removeprefix(old)] = state.pop(name)
