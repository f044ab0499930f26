"""Plain vision transformers of timm, DINOv2 and DINOv3 among them, as backbones with levels of several strides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_uda.networks.backbones.base import cropped, padded
from lightning_uda.networks.backbones.timm_backbone import TimmBackbone, create
from lightning_uda.ranges import COUNT_OR_NONE, DROPPED, SHARE_NOT_ZERO, SIDE, ranged

_REMEDY = (
    "Choose one such as vit_base_patch14_dinov2 or vit_base_patch16_dinov3; networks with stages go to TimmPyramid."
)


class TimmViT(TimmBackbone):
    """A plain vision transformer of timm, whose tokens after several blocks are brought to levels of several strides.

    The tokens of a block, normalised by the network's last LayerNorm, are resized (bilinear) so that a feature of a
    level of stride s lies where it should: its centre at (i + 1/2) s pixels. Images of any size: they are padded with
    zeros, on the right and below, to whole patches of at least a multiple of the coarsest stride, position embeddings
    are resized to them, and the levels are cropped to ceil(n / stride) for n pixels. Class and register tokens take
    part in attention and in nothing else.

    Args:
        name: A timm name such as "vit_base_patch14_dinov2.lvd142m" or "vit_base_patch16_dinov3.lvd1689m".
        pretrained: Whether it takes the weights that timm knows for it, from the folder of weights or the hub.
        strides: Ratio of image to feature size of each level, fine to coarse. Equal ones are possible.
        blocks: Number, from 0, of the block that each level is taken from; by default the last blocks of equal parts
            of the network (2, 5, 8 and 11 of 12).
        drop_path: Share of the samples (0-1) for which the last block is left out in training, rising from 0 at the
            first block.
        layer_decay: Ratio of the learning rates of neighbouring layers; 1 gives all the same.

    Raises:
        ValueError: If timm doesn't know the network, it isn't a plain vision transformer, or there are no such blocks.
        WeightsError: If weights can't be had or don't fit.
    """

    @ranged(strides=SIDE, blocks=COUNT_OR_NONE, drop_path=DROPPED, layer_decay=SHARE_NOT_ZERO)
    def __init__(
        self,
        name: str = "vit_base_patch14_dinov2.lvd142m",
        pretrained: bool = False,
        strides: Sequence[int] = (4, 8, 16, 32),
        blocks: Sequence[int] | None = None,
        drop_path: float = 0.0,
        layer_decay: float = 1.0,
    ) -> None:
        needs = "a plain vision transformer for images of any size"
        model = create(name, needs, _REMEDY, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path)
        if not hasattr(model, "blocks"):
            raise ValueError(f"Backbone {name!r}: found a network with stages, expected {needs}; take TimmPyramid.")
        taken = _taken(name, len(model.blocks), len(strides), blocks)
        model.prune_intermediate_layers(list(taken))
        (self.patch,) = set(model.patch_embed.patch_size)
        super().__init__(name, model, strides, [model.embed_dim] * len(strides), pretrained, layer_decay)
        self.taken = taken

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature levels (N, channels, h, w), fine to coarse, of normalised (N, 3, H, W) inputs."""
        images = padded(padded(inputs, math.lcm(*self.strides)), self.patch)
        tokens = self.model.forward_intermediates(images, indices=self.taken, norm=True, intermediates_only=True)
        return tuple(
            cropped(_resized(part, self.patch, stride), inputs, stride)
            for part, stride in zip(tokens, self.strides, strict=True)
        )

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer's blocks."""
        return list(self.model.blocks)


def _resized(tokens: Tensor, patch: int, stride: int) -> Tensor:
    """Tokens (N, channels, h, w) of patches as features of a stride; both grids begin in the image's corner."""
    if patch == stride:
        return tokens
    scale = patch / stride * (1 + 1e-9)  # so that rounding never costs the last row
    return F.interpolate(tokens, scale_factor=scale, mode="bilinear", align_corners=False)


def _taken(name: str, depth: int, levels: int, blocks: Sequence[int] | None) -> list[int]:
    """Numbers of the blocks that levels are taken from."""
    taken = [depth * (level + 1) // levels - 1 for level in range(levels)] if blocks is None else list(blocks)
    if len(taken) != levels or taken != sorted(set(taken)) or not 0 <= taken[0] <= taken[-1] < depth:
        raise ValueError(
            f"Backbone {name!r}: found blocks {taken} for {levels} levels; expected as many different numbers from 0 "
            f"to {depth - 1}, in rising order."
        )
    return taken
