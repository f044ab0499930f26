from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uda.networks import WeightsError, WideResNet38

UNITS = {2: 3, 3: 3, 4: 6, 5: 3, 6: 1, 7: 1}


def meta_network(**kwargs):
    with torch.device("meta"):
        return WideResNet38(19, **kwargs)


def small(**kwargs):
    torch.manual_seed(0)
    network = WideResNet38(5, stem_channels=2, **kwargs)
    for norm in network.batch_norm_modules():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.uniform_(0.5, 1.5)
    return network


def reference(state, inputs):
    """The table of the paper's appendix, from a state dict, in eval mode."""

    def conv(name, x, **kwargs):
        weight = state[f"backbone.{name}.weight"]
        return F.conv2d(x, weight, padding=kwargs.get("dilation", 1) * (weight.shape[-1] // 2), **kwargs)

    def act(name, x):
        mean, var, weight, bias = (
            state[f"backbone.{name}.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1.001e-5).sqrt() * weight + bias).clamp(min=0)

    x = conv("conv1a", inputs)
    for level, units in UNITS.items():
        for index in range(units):
            unit = f"b{level}" if index == 0 else f"b{level}_{index}"
            stride = 2 if level <= 4 and index == 0 else 1
            dilation = {5: 2, 6: 4, 7: 4}.get(level, 1)
            a = act(f"{unit}.bn_branch2a", x)
            shortcut = conv(f"{unit}.conv_branch1", a, stride=stride) if index == 0 else x
            if level <= 5:
                y = conv(f"{unit}.conv_branch2a", a, stride=stride, dilation=1 if index == 0 else dilation)
                y = conv(f"{unit}.conv_branch2b1", act(f"{unit}.bn_branch2b1", y), dilation=dilation)
            else:
                y = conv(f"{unit}.conv_branch2a", a)
                y = conv(f"{unit}.conv_branch2b1", act(f"{unit}.bn_branch2b1", y), dilation=dilation)
                y = conv(f"{unit}.conv_branch2b2", act(f"{unit}.bn_branch2b2", y))
            x = shortcut + y
    x = act("bn7", x)
    for layer in (0, 2):
        weight, bias = (state[f"classifier.{layer}.{key}"] for key in ("weight", "bias"))
        x = F.conv2d(x if layer == 0 else x.clamp(min=0), weight, bias, padding=12, dilation=12)
    return x


def test_the_network_is_the_table():
    network = small().eval()
    image = torch.rand(1, 3, 42, 67)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = reference(network.state_dict(), (image - mean) / std)
        (classifier,), (features,) = network.outputs(image)
        logits = classifier.logits
    assert logits.shape == (1, 5, 6, 9)
    assert features.shape == (1, *network.channels, 6, 9)
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_number_of_weights_is_the_published_one():
    network = meta_network()
    backbone, head = (sum(p.numel() for p in part.parameters()) for part in (network.backbone, network.classifier))
    assert round(backbone / 1e6, 2) == 105.07
    assert round(head / 1e6, 2) == 18.96
    assert round((backbone + head) / 1e6, 2) == 124.03
    norms = list(network.batch_norm_modules())
    assert len(norms) == 15 * 2 + 2 * 3 + 1
    assert {norm.eps for norm in norms} == {1.001e-5}


@pytest.mark.parametrize(
    ("size", "expected"), [((504, 504), (63, 63)), ((928, 1856), (116, 232)), ((90, 161), (12, 21))]
)
def test_output_size(size, expected):
    (classifier,), (features,) = meta_network().outputs(torch.empty(1, 3, *size, device="meta"))
    assert classifier.logits.shape == (1, 19, *expected)
    assert features.shape == (1, 4096, *expected)


def test_statistics_are_frozen_but_scales_and_dropout_are_not():
    network = small().train()
    norms = list(network.batch_norm_modules())
    assert not any(norm.training for norm in norms)
    assert all(norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)
    dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in dropouts] == [0.3, 0.5]
    before = [norm.running_mean.clone() for norm in norms]
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(network(image), network(image))
    network(image).sum().backward()
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.eval()
    assert torch.equal(network(image), network(image))


def test_convolutions_start_with_variance_two_over_fan_in():
    torch.manual_seed(0)
    network = WideResNet38(5, stem_channels=8)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            assert module.weight.std().item() == pytest.approx((2 / module.weight[0].numel()) ** 0.5, rel=0.06)
    assert (network.classifier[2].bias == 0).all()


def test_shifts_have_twice_the_rate_and_no_decay():
    network = small(classifier_lr_scale=10.0)
    groups = {group["name"]: group for group in network.parameter_groups()}
    name_of = {parameter: name for name, parameter in network.named_parameters()}
    assert {name: (group["lr_scale"], group.get("weight_decay")) for name, group in groups.items()} == {
        "backbone": (1.0, None),
        "backbone_shifts": (2.0, 0.0),
        "classifier": (10.0, None),
        "classifier_shifts": (20.0, 0.0),
    }
    for name, group in groups.items():
        members = [name_of[parameter] for parameter in group["params"]]
        assert all(member.startswith(name.split("_")[0]) for member in members)
        assert all(member.endswith("bias") == name.endswith("shifts") for member in members)
    assert sum(len(group["params"]) for group in groups.values()) == len(name_of)
    optimizer = torch.optim.SGD(list(groups.values()), lr=0.1, weight_decay=5e-4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0, 5e-4, 0.0]
    assert [len(group["params"]) for group in small(batch_norm="eval").parameter_groups()] == [43, 0, 2, 2]


def imagenet_file(path):
    """As the conversions of the published weights are: no head, no counters, a classifier of its own."""
    state = small().backbone.layers.state_dict()
    tensors = {name: torch.rand_like(t) for name, t in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({**tensors, "fc8.weight": torch.zeros(20, 128, 1, 1)}, path)
    return tensors


def test_converted_imagenet_weights_load_as_they_are(tmp_path):
    tensors = imagenet_file(tmp_path / "a1.pth")
    names = {"conv1a.weight", "b2.bn_branch2a.running_var", "b4_5.conv_branch2b1.weight", "b5.conv_branch1.weight"}
    assert {*names, "b7.bn_branch2b2.bias", "b6.conv_branch2b2.weight", "bn7.bias"} <= set(tensors)
    network = WideResNet38(5, stem_channels=2, weights=str(tmp_path / "a1.pth"), min_loaded=1.0)
    for name, tensor in tensors.items():
        assert torch.equal(network.state_dict()[f"backbone.{name}"], tensor), name


def test_a_checkpoint_of_the_network_loads_with_its_head(tmp_path):
    student = small()
    torch.save(
        {"state_dict": {f"student.{name}": t for name, t in student.state_dict().items()}}, tmp_path / "run.ckpt"
    )
    network = WideResNet38(5, stem_channels=2, weights=str(tmp_path / "run.ckpt"))
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in network.state_dict().items())
    other = WideResNet38(7, stem_channels=2, weights=str(tmp_path / "run.ckpt"))
    assert torch.equal(other.classifier[0].weight, student.classifier[0].weight)


def test_files_of_other_networks_are_refused(tmp_path):
    torch.save({"mod1.conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "mapillary.pth")
    with pytest.raises(WeightsError, match=r"mapillary\.pth: loaded 0 of .*mod1\.conv1\.weight.*this architecture"):
        WideResNet38(5, stem_channels=2, weights=str(tmp_path / "mapillary.pth"))
    (tmp_path / "a1.params").write_bytes(b"\x12\x01" + bytes(40))
    with pytest.raises(WeightsError, match=r"a1\.params: can't be read safely"):
        WideResNet38(5, stem_channels=2, weights=str(tmp_path / "a1.params"))
