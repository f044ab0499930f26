from __future__ import annotations

from itertools import islice

import pytest
import timm
import torch
from timm.models.vgg import ConvMlp
from torch.nn import functional as F

from lightning_uda.networks import FCN8s, WeightsError


def small(num_classes=4, **kwargs):
    torch.manual_seed(0)
    network = FCN8s(num_classes, **{"backbone": "vgg11", "fc_channels": 6, **kwargs})
    torch.nn.init.normal_(network.classifier.weight)
    torch.nn.init.normal_(network.classifier.bias)
    return network


def double(x, like):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)[
        :, :, : like.shape[2], : like.shape[3]
    ]


def reference(network, image):
    """FCN-8s on VGG-11 with three scores, added as they are doubled."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, state, pools = (image - mean) / std, network.state_dict(), []
    convolutions = iter(name for name in state if name.startswith("features.") and name.endswith("weight"))
    for number in (1, 1, 2, 2, 2):
        for name in islice(convolutions, number):
            x = F.conv2d(x, state[name], state[name.replace("weight", "bias")], padding=1).relu()
        x = F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2)  # after ReLU, 0 changes no maximum
        pools.append(x)
    fc6 = F.conv2d(x, state["pre_logits.fc1.weight"], state["pre_logits.fc1.bias"], padding=3).relu()
    fc7 = F.conv2d(fc6, state["pre_logits.fc2.weight"], state["pre_logits.fc2.bias"]).relu()
    pool3, pool4 = pools[2], pools[3]
    weight3, weight4, weight7 = state["classifier.weight"].split([pool3.shape[1], pool4.shape[1], fc7.shape[1]], dim=1)
    score = double(F.conv2d(fc7, weight7), pool4) + F.conv2d(pool4, weight4)
    return double(score, pool3) + F.conv2d(pool3, weight3) + state["classifier.bias"].view(1, -1, 1, 1)


@pytest.mark.parametrize("size", [(64, 96), (33, 77), (5, 9)])
def test_the_logits_are_those_of_three_added_scores(size):
    network = small().eval()
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        logits, expected = network(image), reference(network, image)
    assert logits.shape == (2, 4, -(-size[0] // 8), -(-size[1] // 8))
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_size_and_number_of_weights_of_the_published_network():
    with torch.device("meta"):
        network = FCN8s(19)
    (classifier,), features = network.outputs(torch.empty(1, 3, 500, 501, device="meta"))
    assert classifier.logits.shape == (1, 19, 63, 63)
    assert [level.shape for level in features] == [(1, 256, 63, 63), (1, 512, 32, 32), (1, 4096, 16, 16)]
    vgg16_without_its_classifier = 138_357_544 - 4_097_000
    scores = (256 + 512 + 4096) * 19 + 19
    assert sum(p.numel() for p in network.parameters()) == vgg16_without_its_classifier + scores


def test_scores_start_at_zero_and_everything_learns():
    torch.manual_seed(0)
    network = FCN8s(4, "vgg11", fc_channels=6)
    image = torch.rand(1, 3, 64, 64)
    assert (network(image) == 0).all()
    network = small()
    network(image).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_dropout_is_active_in_training_only():
    network, image = small(fc_channels=64), torch.rand(1, 3, 64, 64)
    assert not torch.equal(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))
    assert [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize(("policy", "trained"), [("train", True), ("eval", False)])
def test_groups_hold_every_trained_weight(policy, trained):
    network = small(backbone="vgg11_bn", batch_norm=policy, classifier_lr_scale=10.0)
    backbone, classifier = network.parameter_groups()
    assert (backbone["name"], backbone["lr_scale"]) == ("backbone", 1.0)
    assert (classifier["name"], classifier["lr_scale"]) == ("classifier", 10.0)
    grouped = {*backbone["params"], *classifier["params"]}
    assert grouped == {parameter for parameter in network.parameters() if parameter.requires_grad}
    assert {norm.training for norm in network.train().batch_norm_modules()} == {trained}


def hidden_layers():
    return {"fc1.weight": torch.rand(6, 512, 7, 7), "fc1.bias": torch.rand(6)} | {
        "fc2.weight": torch.rand(6, 6, 1, 1),
        "fc2.bias": torch.rand(6),
    }


@pytest.mark.parametrize("origin", ["timm", "torchvision"])
def test_imagenet_files_fill_all_but_the_classifier(origin, tmp_path):
    features = {f"features.{name}": torch.rand_like(t) for name, t in small().backbone.features.state_dict().items()}
    hidden = hidden_layers()
    if origin == "timm":
        tensors = {**{f"pre_logits.{name}": t for name, t in hidden.items()}, "head.fc.weight": torch.rand(10, 6)}
    else:
        names = {"fc1": "classifier.0", "fc2": "classifier.3"}
        tensors = {f"{names[name[:3]]}{name[3:]}": t.flatten(1) if t.ndim > 1 else t for name, t in hidden.items()}
        tensors |= {"classifier.6.weight": torch.rand(10, 6), "classifier.6.bias": torch.rand(10)}
    torch.save({**features, **tensors}, tmp_path / "vgg.pth")
    network = FCN8s(4, "vgg11", fc_channels=6, weights=str(tmp_path / "vgg.pth"), min_loaded=1.0)
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in features.items())
    assert all(torch.equal(state[f"pre_logits.{name}"], tensor) for name, tensor in hidden.items())
    assert (state["classifier.weight"] == 0).all()


def test_a_checkpoint_loads_with_its_classifier(tmp_path):
    student = small()
    torch.save(student.state_dict(), tmp_path / "fcn.pth")
    loaded = FCN8s(4, "vgg11", fc_channels=6, weights=str(tmp_path / "fcn.pth"))
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert (FCN8s(5, "vgg11", fc_channels=6, weights=str(tmp_path / "fcn.pth")).classifier.weight == 0).all()
    with pytest.raises(WeightsError, match=r"fcn\.pth: loaded .* of what FCN8s needs"):
        FCN8s(4, "vgg13", fc_channels=6, weights=str(tmp_path / "fcn.pth"))


def test_pretrained_weights_come_with_the_hidden_layers(monkeypatch, tmp_path):
    torch.manual_seed(5)
    vgg = timm.create_model("vgg11", num_classes=0, mlp_ratio=6 / 4096)
    vgg.pre_logits = ConvMlp(512, 6, 7)
    torch.save(vgg.state_dict(), tmp_path / "vgg11.tv_in1k.pth")
    monkeypatch.setenv("LIGHTNING_UDA_WEIGHTS", str(tmp_path))
    network = FCN8s(4, "vgg11", pretrained=True, fc_channels=6)
    assert torch.equal(network.backbone.pre_logits.fc1.weight, vgg.pre_logits.fc1.weight)
    assert torch.equal(network.backbone.features[0].weight, vgg.features[0].weight)
    assert not network.random_weights
    other = FCN8s(4, "vgg11", pretrained=True, fc_channels=8)
    assert torch.equal(other.backbone.features[0].weight, vgg.features[0].weight)
    assert other.backbone.pre_logits.fc1.weight.std().item() == pytest.approx((2 / (49 * 512)) ** 0.5, rel=0.05)


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match="'resnet50': FCN8s needs a VGG of timm, one of vgg11, "):
        FCN8s(4, "resnet50")
