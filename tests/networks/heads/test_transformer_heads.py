"""The heads of transformers against their formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uda.networks import DAFormerHead, LinearHead, SegFormerHead

CHANNELS, STRIDES = (3, 5, 6, 7), (4, 8, 16, 32)
HEADS = {"daformer": DAFormerHead(4, dropout=0.5), "segformer": SegFormerHead(4, dropout=0.5), "linear": LinearHead()}


def levels_of(height=64, width=96):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, channels, height // stride, width // stride, generator=generator)
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


def built(head, num_classes=5):
    torch.manual_seed(0)
    classifier = head.build(CHANNELS, STRIDES, num_classes)
    for name, tensor in classifier.state_dict().items():
        if "running_var" in name:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor))
    return classifier.eval()


def conv_bn(features, state, name, **options):
    features = F.conv2d(features, state[f"{name}.0.weight"], **options)
    norm = [state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(features, *norm).relu()


def embedded(levels, state):
    """A linear layer for each pixel of each level, brought to the size of the first."""
    maps = []
    for index, level in enumerate(levels):
        weight, bias = (state[f"0.embed.{index}.{part}"] for part in ("weight", "bias"))
        linear = F.linear(level.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        maps.append(F.interpolate(linear, levels[0].shape[2:], mode="bilinear", align_corners=False))
    return torch.cat(maps, dim=1)


def daformer(levels, state):
    stacked = embedded(levels, state)
    branches = [conv_bn(stacked, state, "1.branches.0")]
    for index, dilation in enumerate((6, 12, 18), start=1):
        depthwise = conv_bn(
            stacked, state, f"1.branches.{index}.0", padding=dilation, dilation=dilation, groups=stacked.shape[1]
        )
        branches.append(conv_bn(depthwise, state, f"1.branches.{index}.1"))
    fused = conv_bn(torch.cat(branches, dim=1), state, "1.fuse", padding=1)
    return F.conv2d(fused, state["3.weight"], state["3.bias"])


def segformer(levels, state):
    return F.conv2d(conv_bn(embedded(levels, state), state, "1"), state["3.weight"], state["3.bias"])


def linear(levels, state):
    size = levels[0].shape[2:]
    stacked = torch.cat([F.interpolate(level, size, mode="bilinear", align_corners=False) for level in levels], dim=1)
    norm = [state[f"0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.conv2d(F.batch_norm(stacked, *norm), state["1.weight"], state["1.bias"])


@pytest.mark.parametrize(("name", "formula"), [("daformer", daformer), ("segformer", segformer), ("linear", linear)])
def test_logits_follow_the_formula(name, formula):
    classifier, levels = built(HEADS[name]), levels_of()
    with torch.no_grad():
        logits, expected = classifier(levels), formula(levels, classifier.state_dict())
    assert logits.shape == (2, 5, 16, 24)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_number_of_weights_of_daformers_head_on_mit_b5():
    """Section 7.6 of the spec, counted layer by layer."""
    with torch.device("meta"):
        classifier = DAFormerHead().build((64, 128, 320, 512), STRIDES, 19)
    embedding = sum(width * 256 + 256 for width in (64, 128, 320, 512))
    pointwise = 1024 * 256 + 2 * 256
    separable = 9 * 1024 + 2 * 1024 + pointwise
    fusing = 9 * 1024 * 256 + 2 * 256
    expected = embedding + pointwise + 3 * separable + fusing + 256 * 19 + 19
    assert sum(parameter.numel() for parameter in classifier.parameters()) == expected == 3_712_275
    convolutions = [layer for layer in classifier.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.dilation[0] for layer in convolutions if layer.groups == 1024] == [6, 12, 18]
    (dropout,) = (layer for layer in classifier.modules() if isinstance(layer, nn.Dropout2d))
    assert dropout.p == 0.1


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_scores_start_small_and_logits_are_resized_without_aligned_corners(head):
    torch.manual_seed(0)
    scores = list(head.build((64, 128), (4, 8), 50).modules())[-1]
    assert scores.weight.mean().abs() < 0.002
    assert scores.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert (scores.bias == 0).all()
    assert not head.align_corners


@pytest.mark.parametrize("name", ["daformer", "segformer"])
def test_dropout_zeroes_whole_channels_in_training_only(name):
    classifier, levels = built(HEADS[name]), levels_of()
    seen = []
    (dropout,) = (layer for layer in classifier.modules() if isinstance(layer, nn.Dropout2d))
    dropout.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        first, second = classifier(levels), classifier(levels)
        assert torch.equal(first, second)
        dropout.train()
        torch.manual_seed(0)
        classifier(levels)
    zero = (seen[2] == 0).flatten(2).all(dim=2)
    assert zero.any()
    assert torch.equal(seen[2][~zero], 2 * seen[0][~zero])
