"""Mix transformers MiT-B0 to B5, SegFormer's backbones (Xie et al., NeurIPS 2021)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, cast

from torch import Tensor, nn

from lightning_uda.networks.backbones.base import Backbone, backbone_groups, undecayed_names
from lightning_uda.networks.base import InputNormalization
from lightning_uda.networks.published import Published
from lightning_uda.networks.weights import WeightsError
from lightning_uda.ranges import DROPPED, ranged

Size = Literal["b0", "b1", "b2", "b3", "b4", "b5"]

_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_STRIDES = (4, 8, 16, 32)
_EPS = 1e-6
_CLASSIFIERS = ("head.", "classifier.", "decode_head.")
_LICENCE = "NVIDIA Source Code License for SegFormer (non-commercial)"


class _Plan(NamedTuple):
    """Channels and numbers of blocks of the four stages."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


_PLANS: Mapping[str, _Plan] = {
    "b0": _Plan((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": _Plan((64, 128, 320, 512), (2, 2, 2, 2)),
    "b2": _Plan((64, 128, 320, 512), (3, 4, 6, 3)),
    "b3": _Plan((64, 128, 320, 512), (3, 4, 18, 3)),
    "b4": _Plan((64, 128, 320, 512), (3, 8, 27, 3)),
    "b5": _Plan((64, 128, 320, 512), (3, 6, 40, 3)),
}

_FROM_SEGFORMER = (
    (r"^patch_embed(\d)\.norm\.", r"stages.\1.patch_embeddings.layer_norm."),
    (r"^patch_embed(\d)\.", r"stages.\1.patch_embeddings."),
    (r"^norm(\d)\.", r"stages.\1.layer_norm."),
    (r"^block(\d)\.", r"stages.\1.blocks."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.q\.", ".attention.q_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
)
"""Names of the makers' files, whose stages count from 1."""
_FROM_HUB = (
    (r"^(segformer\.)?encoder\.patch_embeddings\.(\d)\.", r"stages.\2.patch_embeddings."),
    (r"^(segformer\.)?encoder\.layer_norm\.(\d)\.", r"stages.\2.layer_norm."),
    (r"^(segformer\.)?encoder\.block\.(\d)\.", r"stages.\2.blocks."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"\.attention\.self\.query\.", ".attention.q_proj."),
    (r"\.attention\.self\.key\.", ".attention.k_proj."),
    (r"\.attention\.self\.value\.", ".attention.v_proj."),
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
)
"""Names of the files on the hub, which are those of the package's earlier versions."""


class MiT(Backbone):
    """MiT-B0 to B5 of the package `transformers`, four levels of strides 4, 8, 16 and 32.

    An input of length n gives ceil(n / stride) features. Normalisation is ImageNet's, RGB. Attention has no dropout;
    blocks are left out at random in training (drop-path). The LayerNorms of blocks and stages have an epsilon of 1e-6,
    those of patches and of reduced keys 1e-5, as in the published network.

    ImageNet weights are those of SegFormer's makers (`mit_b5.pth`) or of the hub; all their tensors have to fit.

    Groups: "backbone", and "backbone_norms" (all LayerNorms) without weight decay, as DAFormer trains it.

    Args:
        size: Which one.
        pretrained: Whether it takes its ImageNet weights, from the folder of weights or the hub.
        drop_path: Share of the samples (0-1) for which the last block is left out in training, rising from 0 at the
            first block.

    Raises:
        ValueError: If the package `transformers` isn't installed.
        WeightsError: If weights can't be had or don't fit.
    """

    saved_names: ClassVar[Mapping[str, str]] = {"backbone.model.": "backbone."}

    @ranged(drop_path=DROPPED)
    def __init__(self, size: Size = "b5", pretrained: bool = False, drop_path: float = 0.1) -> None:
        plan = _PLANS[size]
        super().__init__(
            InputNormalization(_IMAGENET_MEAN, _IMAGENET_STD),
            _STRIDES,
            plan.channels,
            Published(f"mit_{size}", _LICENCE, f"nvidia/mit-{size}"),
        )
        self.size = size
        self.model = _segformer(plan, drop_path)
        if pretrained:
            self.load_published(prefix="model.")

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature levels (N, channels, h, w), fine to coarse, of normalised (N, 3, H, W) inputs."""
        levels, features = [], inputs
        for stage in cast(nn.ModuleList, self.model.stages):
            features = stage(features)
            levels.append(features)
        return tuple(levels)

    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks of all stages."""
        stages = cast(Iterable[Any], self.model.stages)
        return [block for stage in stages for block in stage.blocks]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups "backbone" and "backbone_norms", the latter without weight decay."""
        return backbone_groups(self.model, undecayed_names(self.model))

    def translate(self, tensors: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
        """Files of SegFormer's makers and of the hub under the names of this package's networks.

        Raises:
            WeightsError: If a tensor is missing, left over or of another shape.
        """
        if any(re.match(r"block\d\.", name) for name in tensors):
            renamed = _from_segformer(tensors)
        elif any(re.match(r"(segformer\.)?encoder\.block\.", name) for name in tensors):
            renamed = {_renamed(name, _FROM_HUB): tensor for name, tensor in tensors.items()}
        else:
            return tensors
        kept = {name: tensor for name, tensor in renamed.items() if not name.startswith(_CLASSIFIERS)}
        self._require_all(kept, source)
        return kept

    def _require_all(self, tensors: Mapping[str, Tensor], source: str) -> None:
        wanted = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if differing:
            first = differing[0]
            raise WeightsError(
                f"{source}: found a mix transformer of {len(found)} tensors, expected the {len(wanted)} of MiT-"
                f"{self.size.upper()}; {len(differing)} are missing, left over or of another shape, such as {first} "
                f"(file {found.get(first)}, network {wanted.get(first)}). Give the weights of this size, or the size "
                "of these weights."
            )


def _segformer(plan: _Plan, drop_path: float) -> nn.Module:
    try:
        from transformers import SegformerConfig, SegformerModel
    except ImportError as error:
        raise ValueError(
            "MiT: found no package transformers, which holds SegFormer's backbones. Install it: "
            'pip install "lightning_uda[transformers]".'
        ) from error
    config = SegformerConfig(
        hidden_sizes=plan.channels,
        depths=plan.depths,
        num_attention_heads=(1, 2, 5, 8),
        sr_ratios=(8, 4, 2, 1),
        mlp_ratios=(4, 4, 4, 4),
        drop_path_rate=drop_path,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    model = cast(nn.Module, SegformerModel(config))
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and not ("patch_embeddings" in name or "sequence_reduction" in name):
            module.eps = _EPS
    model.apply(_draw)
    return model


def _draw(module: nn.Module) -> None:
    """Initial weights: linear layers from N(0, 0.02^2) without its tails, convolutions of variance 2 / fan-out."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _from_segformer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The makers' tensors: keys and values are one matrix there, keys above."""
    renamed = {}
    for name, tensor in tensors.items():
        counted = re.sub(r"^(patch_embed|block|norm)(\d)\.", lambda found: f"{found[1]}{int(found[2]) - 1}.", name)
        new = _renamed(counted, _FROM_SEGFORMER)
        if ".attn.kv." in new:
            for part, half in zip(("k_proj", "v_proj"), tensor.chunk(2), strict=True):
                renamed[new.replace(".attn.kv.", f".attention.{part}.")] = half
        else:
            renamed[new] = tensor
    return renamed


def _renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
