"""MiT against timm's PVT-v2, which with MiT's numbers is the same network, and against the package's own converter."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import nn
from transformers import SegformerConfig, SegformerModel

from lightning_uda.networks import ASPP, DAFormerHead, EncoderDecoder, MiT, WeightsError

B0 = {"depths": (2, 2, 2, 2), "embed_dims": (32, 64, 160, 256)}


def segformer_name(name):
    """What SegFormer's makers call a tensor of timm's PVT-v2."""
    name = re.sub(r"^patch_embed\.", "patch_embed1.", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.", lambda found: f"patch_embed{int(found[1]) + 1}.", name)
    name = re.sub(r"^stages\.(\d)\.blocks\.", lambda found: f"block{int(found[1]) + 1}.", name)
    name = re.sub(r"^stages\.(\d)\.norm\.", lambda found: f"norm{int(found[1]) + 1}.", name)
    return name.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")


@pytest.fixture(scope="module")
def reference():
    """A network with MiT-B0's numbers; no two of its tensors are equal."""
    torch.manual_seed(0)
    network = PyramidVisionTransformerV2(
        **B0, num_heads=(1, 2, 5, 8), sr_ratios=(8, 4, 2, 1), mlp_ratios=(4, 4, 4, 4), num_classes=1000
    ).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    return network


@pytest.fixture(scope="module")
def published(reference):
    """Its tensors as a file of SegFormer's makers."""
    return {segformer_name(name): tensor for name, tensor in reference.state_dict().items()}


def test_a_file_of_the_makers_gives_the_levels_of_an_independent_network(reference, published, tmp_path):
    torch.save(published, tmp_path / "mit_b0.pth")
    network = EncoderDecoder(5, MiT("b0"), DAFormerHead(8), weights=str(tmp_path / "mit_b0.pth")).eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        levels = network.encode(image)
        expected = reference.forward_intermediates(network.normalized(image), intermediates_only=True)
    for level, other in zip(levels, expected, strict=True):
        assert torch.allclose(level, other, atol=2e-5 * other.abs().max().item())
    backbone = len(network.backbone.state_dict())
    (note,) = (note for note in network.notes() if note.startswith("weights: "))
    assert f"loaded {backbone} of " in note
    assert note.endswith("licence: NVIDIA Source Code License for SegFormer (non-commercial)")
    assert not network.random_weights


def hub_name(name):
    """What the hub's files call a tensor of SegFormer's makers, keys and values aside."""
    name = re.sub(r"^patch_embed(\d)\.norm", lambda f: f"encoder.patch_embeddings.{int(f[1]) - 1}.layer_norm", name)
    name = re.sub(r"^patch_embed(\d)", lambda found: f"encoder.patch_embeddings.{int(found[1]) - 1}", name)
    name = re.sub(r"^block(\d)", lambda found: f"encoder.block.{int(found[1]) - 1}", name)
    name = re.sub(r"^norm(\d)", lambda found: f"encoder.layer_norm.{int(found[1]) - 1}", name)
    name = name.replace("attn.q.", "attention.self.query.").replace("attn.sr.", "attention.self.sr.")
    name = name.replace("attn.norm.", "attention.self.layer_norm.").replace("attn.proj.", "attention.output.dense.")
    name = name.replace("norm1.", "layer_norm_1.").replace("norm2.", "layer_norm_2.")
    return name.replace("mlp.fc", "mlp.dense")


def test_files_of_the_hub_are_read_as_the_package_reads_them(published, tmp_path):
    tensors = {}
    for name, tensor in published.items():
        if name.startswith("head."):
            continue
        if ".attn.kv." in name:
            half = len(tensor) // 2
            start, end = hub_name(name).split("attn.kv.")
            tensors[f"{start}attention.self.key.{end}"] = tensor[:half].clone()
            tensors[f"{start}attention.self.value.{end}"] = tensor[half:].clone()
        else:
            tensors[hub_name(name)] = tensor
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = SegformerConfig(hidden_sizes=B0["embed_dims"], depths=B0["depths"]).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "segformer"}))
    theirs = SegformerModel.from_pretrained(tmp_path).state_dict()

    network = EncoderDecoder(5, MiT("b0"), ASPP(), weights=str(tmp_path / "model.safetensors"))

    ours = network.backbone.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("block2.1.attn.q.bias"),
        lambda tensors: tensors.update({"block1.2.attn.q.bias": torch.zeros(32)}),
        lambda tensors: tensors.update({"norm4.weight": torch.zeros(512)}),
    ],
)
def test_a_file_that_does_not_fit_whole_is_refused(published, change, tmp_path):
    tensors = dict(published)
    change(tensors)
    torch.save(tensors, tmp_path / "mit.pth")
    with pytest.raises(WeightsError, match=r"expected the 192 of MiT-B0; 1 are missing, left over or of another shape"):
        EncoderDecoder(5, MiT("b0"), ASPP(), weights=str(tmp_path / "mit.pth"), min_loaded=0.1)


@pytest.mark.parametrize(
    ("size", "channels", "depths"),
    [
        ("b0", (32, 64, 160, 256), (2, 2, 2, 2)),
        ("b1", (64, 128, 320, 512), (2, 2, 2, 2)),
        ("b2", (64, 128, 320, 512), (3, 4, 6, 3)),
        ("b3", (64, 128, 320, 512), (3, 4, 18, 3)),
        ("b4", (64, 128, 320, 512), (3, 8, 27, 3)),
        ("b5", (64, 128, 320, 512), (3, 6, 40, 3)),
    ],
)
def test_number_of_weights(size, channels, depths):
    """Section 7.5 of the spec, counted layer by layer; 81.4 million for B5, as SegFormer's paper says."""
    expected, before = 0, 3
    for stage, (width, depth, reduction) in enumerate(zip(channels, depths, (8, 4, 2, 1), strict=True)):
        kernel = 7 if stage == 0 else 3
        embedding = kernel**2 * before * width + width + 2 * width
        reducing = reduction**2 * width**2 + width + 2 * width if reduction > 1 else 0
        attention = 4 * (width**2 + width) + reducing
        feed_forward = (4 * width**2 + 4 * width) + (9 * 4 * width + 4 * width) + (4 * width**2 + width)
        expected += embedding + depth * (attention + feed_forward + 2 * 2 * width) + 2 * width
        before = width
    with torch.device("meta"):
        backbone = MiT(size)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == expected
    assert backbone.channels == channels
    if size == "b5":
        assert expected == 81_443_008


def test_drop_path_rises_over_the_blocks_and_nothing_else_is_random():
    with torch.device("meta"):
        backbone = MiT("b5", drop_path=0.1)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in backbone.blocks()]
    assert rates == pytest.approx([0.1 * block / 51 for block in range(52)])
    assert {layer.p for layer in backbone.modules() if isinstance(layer, nn.Dropout)} == {0.0}


def test_epsilons():
    names = {name: layer.eps for name, layer in MiT("b0").model.named_modules() if isinstance(layer, nn.LayerNorm)}
    small = {name for name, eps in names.items() if eps == 1e-6}
    block = r"stages\.\d\.(blocks\.\d\.layernorm_\w+|layer_norm)"
    assert small == {name for name in names if re.fullmatch(block, name)}
    assert {eps for name, eps in names.items() if name not in small} == {1e-5}


def test_layer_norms_have_no_weight_decay():
    backbone = MiT("b0")
    decayed, plain = backbone.parameter_groups()
    assert (decayed["name"], "weight_decay" in decayed) == ("backbone", False)
    assert (plain["name"], plain["weight_decay"]) == ("backbone_norms", 0.0)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {name for name in names.values() if "norm" in name}


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"found no package transformers") as raised:
        MiT("b0")
    (extra,) = re.findall(r'pip install "lightning_uda\[(.*)\]"', str(raised.value))
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"][extra][0].startswith("transformers")
