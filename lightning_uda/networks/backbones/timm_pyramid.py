"""Backbones of timm whose features get coarser from stage to stage: convolutional networks, Swin, PVT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from torch import Tensor, nn

from lightning_uda.networks.backbones.base import cropped, padded
from lightning_uda.networks.backbones.timm_backbone import TimmBackbone, create
from lightning_uda.ranges import DROPPED, LAYERS, SHARE_NOT_ZERO, ranged

_WITH_LEVELS_OF_THEIR_OWN = ("efficientnet", "mobilenetv3", "hrnet")
"""Timm's modules whose networks, asked for features only, keep timm's names and put out nothing else."""
_REMEDY = (
    "Choose a convolutional backbone that can be dilated, such as resnet50, resnet101, regnety_032, convnext_tiny or "
    "mobilenetv3_large_100; with output_stride=32 one with stages, such as swin_tiny_patch4_window7_224 or pvt_v2_b2."
)


class TimmPyramid(TimmBackbone):
    """Any network of timm with stages: ResNet, ConvNeXt, EfficientNet, ..., and the transformers Swin and PVT.

    Images of any size: they are padded to a multiple of the coarsest stride with zeros, on the right and below, and
    the levels are cropped to ceil(n / stride) for n pixels.

    Args:
        name: A timm name such as "resnet50", "resnet101.a1_in1k", "convnext_tiny" or "swin_tiny_patch4_window7_224".
        pretrained: Whether it takes the weights that timm knows for it, from the folder of weights or the hub.
        output_stride: Ratio of image to feature size of the last level; what would be coarser is dilated, which
            transformers can't be.
        levels: Number of feature levels, the last ones of the network.
        drop_path: Share of the samples (0-1) for which the last block is left out in training, rising from 0 at the
            first block.
        layer_decay: Ratio of the learning rates of neighbouring layers; 1 gives all the same.

    Raises:
        ValueError: If timm doesn't know the network, can't dilate it, it has fewer levels, or lacks a setting.
        WeightsError: If weights can't be had or don't fit.
    """

    @ranged(levels=LAYERS, drop_path=DROPPED, layer_decay=SHARE_NOT_ZERO)
    def __init__(
        self,
        name: str = "resnet50",
        pretrained: bool = False,
        output_stride: Literal[8, 16, 32] = 32,
        levels: int = 4,
        drop_path: float = 0.0,
        layer_decay: float = 1.0,
    ) -> None:
        model, info, self._indices = _staged(name, output_stride, levels, drop_path)
        super().__init__(name, model, info.reduction(), info.channels(), pretrained, layer_decay)
        self._stages = tuple(info.module_name())

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature levels (N, channels, h, w), fine to coarse, of normalised (N, 3, H, W) inputs."""
        images = padded(inputs, max(self.strides))
        if self._indices is None:
            levels = self.model(images)
        else:
            levels = self.model.forward_intermediates(images, indices=self._indices, intermediates_only=True)
        return tuple(cropped(level, inputs, stride) for level, stride in zip(levels, self.strides, strict=True))

    def blocks(self) -> Iterable[nn.Module]:
        """The residual blocks of all stages, or whole stages; none where timm doesn't name stages (HRNet)."""
        parts = dict(self.model.named_modules())
        lists = [name for name in ("blocks", "stages", "layers") if name in parts] or self._stages
        return [block for name in lists for block in _in_sequence(parts[name])] if parts.keys() >= set(lists) else []


def _staged(name: str, output_stride: int, levels: int, drop_path: float) -> tuple[Any, Any, list[int] | None]:
    """The network, what timm says of its levels, and their numbers where it has to be asked for them by number."""
    import timm  # brings wandb; networks without it start faster

    arguments: dict[str, Any] = {"features_only": True, "out_indices": tuple(range(-levels, 0))}
    by_number = not timm.models.is_model_in_modules(name.split(".")[0], _WITH_LEVELS_OF_THEIR_OWN)
    if by_number:
        arguments["feature_cls"] = "getter"
    if output_stride != 32:
        arguments["output_stride"] = output_stride
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    if "swin" in name:
        arguments["strict_img_size"] = False
    drops = f" and drop_path={drop_path}" if drop_path else ""
    needs = f"{levels} feature levels with output stride {output_stride}{drops}"
    model = create(name, needs, _REMEDY, **arguments)
    strides = model.feature_info.reduction()
    if len(set(strides)) == 1 and levels > 1:
        raise ValueError(f"Backbone {name!r}: all its levels have stride {strides[0]}; take TimmViT for it.")
    if strides[-1] != output_stride:
        raise ValueError(
            f"Backbone {name!r}: found an output stride of {strides[-1]}, expected {output_stride}; ask for "
            f"output_stride={strides[-1]} or take another backbone."
        )
    return (model.model, model.feature_info, model.out_indices) if by_number else (model, model.feature_info, None)


def _in_sequence(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks that a module runs one after the other, in the stages that it consists of."""
    inner = module if isinstance(module, nn.Sequential | nn.ModuleList) else getattr(module, "blocks", None)
    if isinstance(inner, nn.Sequential | nn.ModuleList):
        for child in inner:
            yield from _in_sequence(child)
    elif any(True for _ in module.parameters()):
        yield module
