"""Wide ResNet-38 for segmentation, as CBST trains it (Wu, Shen and van den Hengel, 2016)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from lightning_uda.networks.backbones import ResNet38
from lightning_uda.networks.base import BatchNormPolicy
from lightning_uda.networks.encoder_decoder import EncoderDecoder
from lightning_uda.networks.heads import DilatedConvolutions
from lightning_uda.ranges import CHANNELS, ranged

_HEAD_CHANNELS = 8


class WideResNet38(EncoderDecoder):
    """Wide ResNet-38 A1 with two dilated convolutions as its head: 124 million weights, no pooling, output stride 8.

    `ResNet38` with `DilatedConvolutions`. An input of length n gives ceil(n / 8) logits.

    Groups, as CBST's MXNet program has them: "backbone" and "classifier" (weights and scales), "backbone_shifts" and
    "classifier_shifts" (biases and BatchNorm's shifts, at twice the rate and without weight decay).

    Args:
        num_classes: Number of output channels.
        weights: Path of weights to load: a checkpoint of this network or an ImageNet state dict of the backbone (see
            `ResNet38`). A classifier of other shape is skipped.
        stem_channels: Channels of the first convolution; all others are multiples of it.
        batch_norm: See `SegmentationNetwork`. With "frozen_statistics" (CBST) give `weights`, or train from scratch
            with "train".
        classifier_lr_scale: Learning rate of the classifier as a multiple of the base rate.
        min_loaded: Share (0-1) of the tensors outside the classifier that `weights` has to provide.
        checkpointing: Whether the backbone's blocks are computed again in the backward pass, which saves memory.

    Raises:
        WeightsError: If weights can't be read or don't fit.
    """

    @ranged(stem_channels=CHANNELS)
    def __init__(
        self,
        num_classes: int,
        weights: str | None = None,
        stem_channels: int = 64,
        batch_norm: BatchNormPolicy = "frozen_statistics",
        classifier_lr_scale: float = 1.0,
        min_loaded: float = 0.9,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            ResNet38(stem_channels),
            DilatedConvolutions(_HEAD_CHANNELS * stem_channels),
            weights=weights,
            batch_norm=batch_norm,
            classifier_lr_scale=classifier_lr_scale,
            min_loaded=min_loaded,
            checkpointing=checkpointing,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone", "backbone_shifts", "classifier" and "classifier_shifts"."""
        shifts = {parameter for name, parameter in self.named_parameters() if name.endswith("bias")}
        return [part for group in super().parameter_groups() for part in _shifts_apart(group, shifts)]


def _shifts_apart(group: dict[str, Any], shifts: Collection[nn.Parameter]) -> list[dict[str, Any]]:
    weights = [parameter for parameter in group["params"] if parameter not in shifts]
    rest = [parameter for parameter in group["params"] if parameter in shifts]
    doubled = {"name": f"{group['name']}_shifts", "lr_scale": 2 * group["lr_scale"], "weight_decay": 0.0}
    return [{**group, "params": weights}, {**group, **doubled, "params": rest}]
