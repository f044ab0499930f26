from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_uda.networks import CaffeDeepLabV2, DeepLabV2, WeightsError

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {"blocks": (2, 1, 2, 1), "planes": (3, 6, 12, 24), "stem_channels": 4}
BGR_MEAN = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)


def golden(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def assert_close(actual: Tensor, expected: np.ndarray) -> None:
    reference = torch.from_numpy(expected)
    assert actual.shape == reference.shape
    assert (actual.detach() - reference).abs().max() <= 1e-5 * reference.abs().max()


def tiny_caffe(num_classes: int = 4, **kwargs: Any) -> CaffeDeepLabV2:
    return CaffeDeepLabV2(num_classes, **{**TINY, **kwargs})


def tiny_golden() -> tuple[CaffeDeepLabV2, dict[str, Any]]:
    arrays = golden("dacs_deeplabv2_tiny")
    network = tiny_caffe()
    tensors = {
        name.removeprefix("param__"): torch.from_numpy(array).float()
        for name, array in arrays.items()
        if name.startswith("param__")
    }
    unmatched = network.load_state_dict(tensors, strict=False)
    assert not unmatched.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in unmatched.missing_keys)
    return network, arrays


def meta_network(**kwargs: Any) -> CaffeDeepLabV2:
    with torch.device("meta"):
        return CaffeDeepLabV2(19, **kwargs)


def named_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names in files, in the order of files."""
    return {name: t for name, t in network.state_dict(keep_vars=True).items() if isinstance(t, nn.Parameter)}


def group_names(network: nn.Module, groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    name_of = {parameter: name for name, parameter in named_parameters(network).items()}
    return {group["name"]: [name_of[parameter] for parameter in group["params"]] for group in groups}


# Caffe-style network against the published numbers


def test_tiny_eval_golden():
    network, arrays = tiny_golden()
    seen: dict[str, Tensor] = {}
    for name in ("maxpool", "layer2", "layer4"):
        module = network.backbone.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.clone()}))

    with torch.no_grad():
        logits = network.eval().decode(network.backbone(torch.from_numpy(arrays["input"])))

    assert_close(seen["maxpool"], arrays["eval_after_maxpool"])
    assert_close(seen["layer2"], arrays["eval_after_layer2"])
    assert_close(seen["layer4"].mean(1), arrays["eval_after_layer4_channel_mean"])
    assert_close(logits, arrays["eval_logits"])
    upsampled = F.interpolate(logits, size=(65, 49), mode="bilinear", align_corners=True)
    assert_close(upsampled, arrays["eval_logits_upsampled_align_corners"])


def test_tiny_train_golden_and_running_statistics():
    network, arrays = tiny_golden()

    logits = network.train().decode(network.backbone(torch.from_numpy(arrays["input"])))

    assert_close(logits, arrays["train_logits"])
    for layer in ("bn1", "layer4.0.bn3"):
        norm = network.backbone.get_submodule(layer)
        assert_close(norm.running_mean, arrays[f"running_mean_after_train__{layer}"])
        assert_close(norm.running_var, arrays[f"running_var_after_train__{layer}"])


def test_tiny_takes_rgb_images_and_turns_them_to_bgr_minus_mean():
    network, arrays = tiny_golden()
    image = ((torch.from_numpy(arrays["input"]) + BGR_MEAN) / 255).flip(1)

    with torch.no_grad():
        (classifier,), features = network.eval().outputs(image)

    assert torch.allclose(classifier.logits, torch.from_numpy(arrays["eval_logits"]), rtol=1e-4, atol=1e-4)
    assert features[-1].shape == (2, network.channels[-1], 9, 7)


def test_tiny_trainable_and_frozen_names():
    arrays = golden("dacs_deeplabv2_tiny")
    network = tiny_caffe(dilations=(6, 12, 18, 24))

    trainable = [name for name, parameter in named_parameters(network).items() if parameter.requires_grad]
    frozen = [name for name, parameter in named_parameters(network).items() if not parameter.requires_grad]

    assert trainable == arrays["trainable_names"].tolist()
    assert frozen == arrays["frozen_names"].tolist()


def test_unsummed_branches_are_out_of_training_and_nothing_else():
    """The published program's last two branches get no gradient either; every other parameter must get one."""
    network, arrays = tiny_golden()
    unsummed = {f"layer5.conv2d_list.{branch}.{kind}" for branch in (2, 3) for kind in ("weight", "bias")}

    network(torch.rand(2, 3, 65, 49)).square().mean().backward()

    with_gradient = {name for name, parameter in named_parameters(network).items() if parameter.grad is not None}
    assert with_gradient == set(arrays["trainable_names"].tolist()) - unsummed
    optimized = {name for names in group_names(network, network.parameter_groups()).values() for name in names}
    assert optimized == with_gradient


def test_manifest_names_shapes_and_parameter_counts():
    manifest = golden("dacs_deeplabv2_r101_manifest")
    network = meta_network(dilations=(6, 12, 18, 24))

    state = network.state_dict()

    assert list(state) == manifest["state_dict_keys"].tolist()
    shapes = [",".join(map(str, tensor.shape)) for tensor in state.values()]
    assert shapes == manifest["state_dict_shapes"].tolist()
    assert list(meta_network().state_dict()) == list(state)
    counts: Counter[bool] = Counter()
    for parameter in network.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert counts == {True: 43_795_724, False: 105_344}
    frozen = [name for name, parameter in named_parameters(network).items() if not parameter.requires_grad]
    assert frozen == manifest["frozen_names"].tolist()


def test_manifest_groups_and_update_counts():
    manifest = golden("dacs_deeplabv2_r101_manifest")
    network = meta_network(dilations=(6, 12, 18, 24))

    groups = network.parameter_groups()
    names = group_names(network, groups)

    repeats = {name: group.get("update_repeats", 1) for group in groups for name in names[group["name"]]}
    published = zip(manifest["backbone_group"].tolist(), manifest["backbone_update_count"].tolist(), strict=True)
    assert {name: count for name, count in repeats.items() if not name.startswith("layer5.")} == dict(published)
    assert names["classifier"] == manifest["classifier_group"].tolist()
    assert [{**group, "params": len(group["params"])} for group in groups] == [
        {"name": "backbone_stem", "params": 1, "lr_scale": 1.0, "update_repeats": 1},
        {"name": "backbone_blocks", "params": 99, "lr_scale": 1.0, "update_repeats": 3},
        {"name": "backbone_shortcuts", "params": 4, "lr_scale": 1.0, "update_repeats": 4},
        {"name": "classifier", "params": 8, "lr_scale": 10.0},
    ]
    two_branches = meta_network()
    assert (
        group_names(two_branches, two_branches.parameter_groups())["classifier"]
        == manifest["classifier_group"].tolist()[:4]
    )


def test_trained_batch_norm_goes_with_its_convolutions():
    network = tiny_caffe(batch_norm="train", classifier_lr_scale=1.0)

    groups = network.parameter_groups()
    names = group_names(network, groups)

    assert names["backbone_stem"] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert "layer2.0.bn3.bias" in names["backbone_blocks"]
    assert "layer2.0.downsample.1.weight" in names["backbone_shortcuts"]
    grouped = [name for group in names.values() for name in group]
    assert sorted(grouped) == sorted(name for name, p in named_parameters(network).items() if p.requires_grad)
    assert groups[-1]["lr_scale"] == 1.0


@pytest.mark.parametrize(("height", "width", "expected"), [(512, 1024, (65, 129)), (720, 512, (91, 65))])
def test_output_size(height, width, expected):
    network = meta_network()

    (classifier,), features = network.outputs(torch.empty(1, 3, height, width, device="meta"))

    assert classifier.logits.shape == (1, 19, *expected)
    assert features[-1].shape == (1, 2048, *expected)
    assert network.channels == (256, 512, 1024, 2048)
    assert network.strides == (4, 8, 8, 8)


def test_convolutions_start_small_and_batch_norm_neutral():
    torch.manual_seed(0)
    network = tiny_caffe(planes=(16, 16, 16, 64))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.15)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("policy", ["train", "frozen_affine", "eval"])
@pytest.mark.parametrize("build", [tiny_caffe, lambda **kwargs: DeepLabV2(4, "resnet18", **kwargs)])
def test_batch_norm_policies(policy, build):
    network = build(batch_norm=policy)

    network.eval().train()

    norms = list(network.batch_norm_modules())
    assert norms
    assert {norm.training for norm in norms} == {policy != "eval"}
    assert {norm.weight.requires_grad for norm in norms} == {policy == "train"}
    optimized = {id(p) for group in network.parameter_groups() for p in group["params"]}
    assert {id(norm.weight) in optimized for norm in norms} == {policy == "train"}
    assert not any(module.training for module in network.eval().modules())


# Caffe-style network and its files


def published_initialization(classes: int = 21) -> dict[str, Tensor]:
    torch.manual_seed(5)
    state = tiny_caffe(classes).state_dict()
    return {name: torch.randn_like(t) for name, t in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("prefix", ["", "Scale."])
def test_published_initialization_loads_all_but_the_classifier(tmp_path, prefix):
    tensors = published_initialization()
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "init.pth")
    torch.manual_seed(1)
    untouched = tiny_caffe().classifier.state_dict()

    torch.manual_seed(1)
    network = tiny_caffe(weights=str(tmp_path / "init.pth"))

    for name, tensor in network.state_dict().items():
        if name.startswith("layer5."):
            assert torch.equal(tensor, untouched[name.removeprefix("layer5.")]), name
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, tensors[name]), name


def test_published_checkpoint_gives_the_student(tmp_path):
    student, teacher = tiny_caffe(), tiny_caffe()
    content = {"iteration": 7, "optimizer": {}, "config": {"a": 1}}
    torch.save({**content, "model": student.state_dict(), "ema_model": teacher.state_dict()}, tmp_path / "dacs.pth")

    network = tiny_caffe(weights=str(tmp_path / "dacs.pth"), min_loaded=1.0)

    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert not torch.equal(network.classifier.conv2d_list[0].weight, teacher.classifier.conv2d_list[0].weight)


@pytest.mark.parametrize(("classifier", "message"), [(True, r"with an ImageNet classifier"), (False, "without layer5")])
def test_imagenet_resnet_is_refused(tmp_path, classifier, message):
    tensors = {name: t for name, t in published_initialization().items() if not name.startswith("layer5.")}
    if classifier:
        tensors |= {"fc.weight": torch.zeros(10, 96), "fc.bias": torch.zeros(10)}
    torch.save(tensors, tmp_path / "resnet.pth")

    with pytest.raises(WeightsError, match=rf"resnet\.pth: found a ResNet {message}.*3x3 convolution.*Use DeepLabV2"):
        tiny_caffe(weights=str(tmp_path / "resnet.pth"))


def test_min_loaded_is_asked_for_outside_the_classifier(tmp_path):
    tensors = {name: t for name, t in published_initialization(4).items() if not name.startswith("layer3.")}
    torch.save(tensors, tmp_path / "part.pth")

    with pytest.raises(WeightsError, match=r"part\.pth: loaded 88 of 123 tensors; not in the file: layer3\."):
        tiny_caffe(weights=str(tmp_path / "part.pth"))
    tiny_caffe(weights=str(tmp_path / "part.pth"), min_loaded=0.6)


# timm backbones


def test_timm_normalization_is_that_of_the_weights():
    network = DeepLabV2(5, "xception41")

    assert network.normalization.channel_order == "rgb"
    assert torch.allclose(network.normalization.mean, torch.tensor(127.5))
    assert torch.allclose(network.normalization.std, torch.tensor(127.5))


def test_timm_groups_hold_every_parameter_with_a_gradient():
    network = DeepLabV2(5, "resnet18", dilations=(6,), classifier_lr_scale=3.0)

    network(torch.rand(2, 3, 32, 32)).sum().backward()

    names = group_names(network, network.parameter_groups())
    assert names["classifier"] == ["classifier.conv2d_list.0.weight", "classifier.conv2d_list.0.bias"]
    assert {name for group in names.values() for name in group} == {
        name for name, parameter in named_parameters(network).items() if parameter.grad is not None
    }
    settings = [(group["name"], group["lr_scale"], set(group)) for group in network.parameter_groups()]
    keys = {"name", "params", "lr_scale"}
    assert settings == [("backbone", 1.0, keys), ("classifier", 3.0, keys)]


def test_own_checkpoint_loads(tmp_path):
    first = DeepLabV2(5, "resnet18")
    state = {f"student.{name}": tensor for name, tensor in first.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")

    second = DeepLabV2(5, "resnet18", weights=str(tmp_path / "last.ckpt"), min_loaded=1.0)

    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in second.state_dict().items())


def test_imagenet_file_with_timm_names_loads_the_backbone(tmp_path):
    resnet = timm.create_model("resnet18")
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")

    network = DeepLabV2(5, "resnet18", weights=str(tmp_path / "resnet18.pth"), min_loaded=1.0)

    loaded = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("backbone.")}
    assert len(loaded) == len(resnet.state_dict()) - 2
    assert all(torch.equal(tensor, resnet.state_dict()[name[len("backbone.") :]]) for name, tensor in loaded.items())


def test_caffe_file_is_refused_by_the_timm_network(tmp_path):
    torch.save(published_initialization(), tmp_path / "caffe.pth")

    with pytest.raises(WeightsError, match=r"caffe\.pth: found a Caffe-style DeepLab-v2.*use CaffeDeepLabV2"):
        DeepLabV2(5, "resnet18", weights=str(tmp_path / "caffe.pth"))
