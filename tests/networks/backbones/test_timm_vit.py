import pytest
import timm
import torch

from lightning_uda.networks import EncoderDecoder, LinearHead, TimmViT
from lightning_uda.networks.backbones import timm_vit


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3"])
def test_levels_of_the_patch_stride_are_the_normalised_tokens(name):
    """Against timm's own way to intermediate tokens, of a network with all its blocks."""
    torch.manual_seed(0)
    backbone = TimmViT(name, strides=(16, 16), blocks=(1, 4)).eval()
    whole = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    unmatched = whole.load_state_dict(backbone.model.state_dict(), strict=False)
    assert not unmatched.unexpected_keys
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        levels = backbone(image)
        seen = {}
        for block in (1, 4):
            whole.blocks[block].register_forward_hook(lambda _m, _i, out, block=block: seen.update({block: out}))
        whole(image)
        expected = [whole.norm(seen[block])[:, whole.num_prefix_tokens :] for block in (1, 4)]
    for level, tokens in zip(levels, expected, strict=True):
        assert torch.allclose(level, tokens.transpose(1, 2).reshape(2, -1, 4, 6), atol=1e-6)


@pytest.mark.parametrize(("patch", "stride"), [(14, 4), (14, 8), (14, 32), (14, 12), (16, 4), (16, 8), (16, 32)])
def test_features_lie_where_their_stride_says(patch, stride):
    """Tokens that hold the row of their centre, in pixels, give features that hold that of theirs."""
    rows = 24
    centres = (torch.arange(rows) + 0.5) * patch
    tokens = centres.view(1, 1, rows, 1).expand(1, 1, rows, 24)
    (column,) = timm_vit._resized(tokens, patch, stride)[0, :, :, 3]
    assert len(column) == rows * patch // stride
    expected = ((torch.arange(len(column)) + 0.5) * stride).clamp(centres[0], centres[-1])
    assert torch.allclose(column, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (70, 140), (50, 75), (500, 33)])
@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_dinov2"])
def test_images_of_any_size(name, size):
    backbone = TimmViT(name, blocks=(0, 1, 2, 3)).eval()
    with torch.no_grad():
        levels = backbone(torch.rand(1, 3, *size))
    assert [level.shape[2:] for level in levels] == [
        torch.Size(-(-side // stride) for side in size) for stride in (4, 8, 16, 32)
    ]


def test_padding_does_not_shift_features():
    """An image of whole patches gives the same features alone and with an empty border that it is cropped from."""
    backbone = TimmViT("test_vit", strides=(16,)).eval()
    seen = []
    backbone.model.patch_embed.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 3, 60, 90)
    with torch.no_grad():
        backbone(image)
    assert seen[0].shape == (1, 3, 64, 96)
    assert torch.equal(seen[0][..., :60, :90], image)
    assert seen[0].sum() == pytest.approx(image.sum().item(), rel=1e-5)


def test_default_blocks_end_equal_parts():
    assert TimmViT("vit_small_patch14_dinov2").taken == [2, 5, 8, 11]
    assert TimmViT("test_vit", strides=(8,)).taken == [5]
    assert len(TimmViT("test_vit", strides=(8,), blocks=[2]).model.blocks) == 3


def test_rates_decay_by_layers():
    """Embeddings 0.5^7, six blocks 0.5^6 to 0.5^1, the last LayerNorm with the last block; norms don't decay."""
    network = EncoderDecoder(5, TimmViT("test_vit", layer_decay=0.5, strides=(16,)), LinearHead())
    groups = {group["name"]: group for group in network.parameter_groups()}
    names = {id(parameter): name for name, parameter in network.backbone.model.named_parameters()}
    members = {name: {names.get(id(p)) for p in group["params"]} for name, group in groups.items()}
    for layer in range(7):
        for end in ("", "_norms"):
            assert groups[f"backbone_layer{layer}{end}"]["lr_scale"] == 0.5 ** (7 - layer)
    assert groups["classifier"]["lr_scale"] == 10.0
    assert members["backbone_layer0"] == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert members["backbone_layer0_norms"] == {"cls_token", "pos_embed"}
    assert {"norm.weight", "blocks.5.norm1.weight"} < members["backbone_layer6_norms"]
    assert "blocks.0.attn.qkv.weight" in members["backbone_layer1"]
    assert [name for name, group in groups.items() if group.get("weight_decay") == 0.0] == [
        name for name in groups if name.endswith("_norms")
    ]


@pytest.mark.parametrize("blocks", [(0, 1), (0, 1, 1, 2), (3, 2, 1, 0), (0, 1, 2, 6)])
def test_blocks_that_are_not_there(blocks):
    with pytest.raises(ValueError, match=r"'test_vit': found blocks .* for 4 levels; expected .* from 0 to 5"):
        TimmViT("test_vit", blocks=blocks)


def test_blocks_before_the_first():
    with pytest.raises(ValueError, match=r"TimmViT.blocks: found \(-1, 1, 2, 3\), expected numbers from 0"):
        TimmViT("test_vit", blocks=(-1, 1, 2, 3))


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_networks_with_stages_are_refused(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*a plain vision transformer for images of any size.*TimmPyramid"):
        TimmViT(name)
