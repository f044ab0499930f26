from __future__ import annotations

import re

import pytest
import timm
import torch

from lightning_uda.networks import ASPP, EncoderDecoder, TimmPyramid


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_100", "convnext_atto"])
def test_levels_are_as_declared(backbone, stride):
    for levels in (1, 4):
        made = TimmPyramid(backbone, output_stride=stride, levels=levels).eval()
        with torch.no_grad():
            features = made(torch.rand(1, 3, 64, 96))
        assert len(features) == levels
        assert made.strides[-1] == stride
        assert [level.shape for level in features] == [
            (1, channels, 64 // ratio, 96 // ratio) for channels, ratio in zip(made.channels, made.strides, strict=True)
        ]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"output_stride": 8}),
        ("tf_efficientnet_lite0", {"output_stride": 8}),
        ("convnext_atto", {}),
        ("pvt_v2_b0", {}),
        ("swin_tiny_patch4_window7_224", {}),
    ],
)
def test_levels_and_initial_weights_are_those_of_timms_feature_networks(name, arguments):
    """Swin's come with channels last there; the initial weights are those that runs from scratch always had."""
    swin = {"strict_img_size": False} if "swin" in name else {}
    torch.manual_seed(0)
    reference = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1), **arguments, **swin).eval()
    torch.manual_seed(0)
    backbone = TimmPyramid(name, **arguments).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        levels, expected = backbone(image), reference(image)
    for level, other in zip(levels, expected, strict=True):
        assert torch.equal(level, other.permute(0, 3, 1, 2) if swin else other)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_names_are_timms(name):
    names = timm.create_model(name).state_dict().keys()
    network = EncoderDecoder(5, TimmPyramid(name), ASPP())
    saved = {key.removeprefix("backbone.") for key in network.state_dict() if key.startswith("backbone.")}
    assert saved < names
    assert all(key.startswith(("norm.", "norm_pre.", "head.")) for key in names - saved)


def test_small_images_with_odd_sides_are_padded():
    """ConvNeXt by itself would leave out what doesn't fill a patch."""
    backbone = TimmPyramid("convnext_atto").eval()
    image = torch.rand(1, 3, 50, 75)
    with torch.no_grad():
        levels = backbone(image)
        whole = backbone(torch.nn.functional.pad(image, (0, 21, 0, 14)))
    assert [level.shape[2:] for level in levels] == [(13, 19), (7, 10), (4, 5), (2, 3)]
    for level, other in zip(levels, whole, strict=True):
        assert torch.equal(level, other[..., : level.shape[2], : level.shape[3]])


def test_norms_are_trained_without_weight_decay_and_batch_norm_with_it():
    (group,) = TimmPyramid("resnet18").parameter_groups()
    assert (group["name"], group["lr_scale"], "weight_decay" in group) == ("backbone", 1.0, False)
    backbone = TimmPyramid("swin_tiny_patch4_window7_224")
    decayed, plain = sorted(backbone.parameter_groups(), key=lambda group: group["name"])
    assert (decayed["name"], "weight_decay" in decayed) == ("backbone", False)
    assert (plain["name"], plain["weight_decay"]) == ("backbone_norms", 0.0)
    names = {id(parameter): name for name, parameter in backbone.model.named_parameters()}
    without = {names[id(parameter)] for parameter in plain["params"]}
    assert without == {name for name in names.values() if "norm" in name or "relative_position_bias_table" in name}


def test_rates_decay_by_layers():
    backbone = TimmPyramid("convnext_atto", layer_decay=0.5)
    scales = {group["name"]: group["lr_scale"] for group in backbone.parameter_groups()}
    assert scales["backbone_layer0"] == scales["backbone_layer0_norms"] == min(scales.values())
    assert max(scales.values()) == 0.5


def test_networks_without_named_stages_are_not_checkpointed():
    with torch.no_grad():
        levels = TimmPyramid("hrnet_w18_small").eval()(torch.rand(1, 3, 64, 96))
    assert [level.shape[1:] for level in levels] == [(128, 16, 24), (256, 8, 12), (512, 4, 6), (1024, 2, 3)]
    with pytest.raises(ValueError, match="checkpointing=True, but TimmPyramid names no blocks"):
        EncoderDecoder(5, TimmPyramid("hrnet_w18_small"), ASPP(), checkpointing=True)


def test_unknown_backbone_suggests_close_names():
    with pytest.raises(ValueError, match=r"Backbone 'resnet5O': timm has no model of this name; did you mean resnet50"):
        TimmPyramid("resnet5O")


@pytest.mark.parametrize("backbone", ["vgg11", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_backbone_that_cannot_be_dilated(backbone):
    with pytest.raises(ValueError, match=rf"Backbone '{backbone}': timm can't give .* output stride 8 .*Choose a conv"):
        TimmPyramid(backbone, output_stride=8)


def test_drop_path_that_a_network_has_not():
    with pytest.raises(ValueError, match=r"'vgg11': timm can't give 4 feature levels .* and drop_path=0\.1 \(TypeErr"):
        TimmPyramid("vgg11", drop_path=0.1)


def test_plain_transformers_are_refused():
    with pytest.raises(ValueError, match="all its levels have stride 16; take TimmViT"):
        TimmPyramid("test_vit")


def test_output_stride_is_checked_against_the_backbone():
    message = "found an output stride of 32, expected 64; ask for output_stride=32"
    with pytest.raises(ValueError, match=re.escape(message)):
        TimmPyramid("mobilenetv3_small_100", output_stride=64)  # type: ignore[arg-type]
