"""The contract of all networks, and what only a free combination of backbone and head shows."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uda.cli import run_trainer
from lightning_uda.networks import (
    ASPP,
    VGG,
    Auxiliary,
    CaffeDeepLabV2,
    CaffeResNet,
    DeepLabV2,
    EncoderDecoder,
    FCN8s,
    LevelScores,
    ResNet38,
    TimmPyramid,
    WeightsError,
    WideResNet38,
    load_weights,
)
from tests.test_configs import CONFIGS

TINY = {"blocks": (1, 1, 1, 1), "planes": (2, 3, 4, 5), "stem_channels": 4}
NETWORKS = {
    "timm": (lambda: DeepLabV2(5, "resnet18"), (4, 8, 8, 8), (64, 128, 256, 512)),
    "timm, one level": (
        lambda: EncoderDecoder(5, TimmPyramid("resnet18", output_stride=8, levels=1), ASPP()),
        (8,),
        (512,),
    ),
    "timm, stride 32": (lambda: DeepLabV2(5, "resnet18", output_stride=32), (4, 8, 16, 32), (64, 128, 256, 512)),
    "caffe": (lambda: CaffeDeepLabV2(5, **TINY), (4, 8, 8, 8), (8, 12, 16, 20)),
    "fcn8s": (lambda: FCN8s(5, "vgg11", fc_channels=6), (8, 16, 32), (256, 512, 6)),
    "wide": (lambda: WideResNet38(5, stem_channels=2, batch_norm="train"), (8,), (128,)),
    "free": (lambda: EncoderDecoder(5, VGG("vgg11", fc_channels=6), ASPP((1, 3))), (8, 16, 32), (256, 512, 6)),
}
every_network = pytest.mark.parametrize(("make", "strides", "channels"), NETWORKS.values(), ids=NETWORKS)


def with_auxiliary(**kwargs):
    auxiliary = [Auxiliary(ASPP((2,)), level=-2, weight=0.1), Auxiliary(ASPP((1, 3)), level=0, weight=0.4)]
    return CaffeDeepLabV2(5, **TINY, auxiliary=auxiliary, **kwargs)


# The contract


@every_network
def test_levels_are_as_declared_and_the_first_classifier_is_what_forward_gives(make, strides, channels):
    network = make().eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        logits, outputs = network(image), network.outputs(image)
    assert (network.strides, network.channels) == (strides, channels)
    exact = not isinstance(network.backbone, CaffeResNet)  # whose pooling gives one more
    sizes = [(64 // stride + (not exact), 96 // stride + (not exact)) for stride in strides]
    assert [level.shape for level in outputs.features] == [
        (2, width, *size) for width, size in zip(channels, sizes, strict=True)
    ]
    (classifier,) = outputs.classifiers
    assert torch.equal(classifier.logits, logits)
    assert (classifier.weight, classifier.window) == (1.0, None)
    assert logits.shape[:2] == (2, 5)
    assert network.align_corners


@every_network
def test_groups_hold_every_trained_parameter_once(make, strides, channels):
    network = make()
    groups = network.parameter_groups()
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in network.parameters() if parameter.requires_grad)
    assert all(group["name"].split("_")[0] in ("backbone", "classifier") for group in groups)
    assert all("update_repeats" not in group for group in groups) is not isinstance(network.backbone, CaffeResNet)


@every_network
def test_a_state_dict_loads_strictly_into_a_module_around_the_network(make, strides, channels):
    torch.manual_seed(0)
    around = nn.ModuleDict({"student": make(), "teacher": make()})
    other = copy.deepcopy(around)
    state = {name: torch.randn_like(tensor.float()).to(tensor.dtype) for name, tensor in around.state_dict().items()}
    other.load_state_dict(state)
    assert list(other.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**state, "student.backbone.unheard_of": torch.zeros(1)})


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: DeepLabV2(5, "resnet18"), ("backbone.conv1.weight", "backbone.layer4.1.bn2.bias")),
        (lambda: CaffeDeepLabV2(5, **TINY), ("conv1.weight", "layer5.conv2d_list.3.bias")),
        (lambda: EncoderDecoder(5, CaffeResNet(**TINY), ASPP()), ("conv1.weight", "layer5.conv2d_list.1.bias")),
        (lambda: FCN8s(5, "vgg11", fc_channels=6), ("features.0.weight", "classifier.bias")),
        (lambda: WideResNet38(5, stem_channels=2), ("backbone.conv1a.weight", "classifier.2.bias")),
        (lambda: EncoderDecoder(5, ResNet38(2), ASPP()), ("backbone.conv1a.weight", "classifier.conv2d_list.1.bias")),
    ],
)
def test_names_in_files_are_the_published_ones(make, names):
    saved = [name for name in make().state_dict() if not name.endswith("num_batches_tracked")]
    assert names[0] == saved[0]
    assert names[1] in saved


# Auxiliary classifiers


def test_an_auxiliary_head_gives_a_second_classifier_with_its_weight():
    network, image = with_auxiliary().eval(), torch.rand(1, 3, 33, 49)
    with torch.no_grad():
        outputs = network.outputs(image)
    assert [classifier.weight for classifier in outputs.classifiers] == [1.0, 0.1, 0.4]
    assert torch.equal(outputs.classifiers[0].logits, network(image))
    weight, bias = (network.state_dict()[f"auxiliary.0.conv2d_list.0.{kind}"] for kind in ("weight", "bias"))
    expected = F.conv2d(outputs.features[2], weight, bias, padding=2, dilation=2)
    assert torch.equal(outputs.classifiers[1].logits, expected)
    assert outputs.classifiers[2].logits.shape == (1, 5, *outputs.features[0].shape[-2:])


def test_auxiliary_heads_have_a_group_and_names_of_their_own(tmp_path):
    torch.manual_seed(0)
    plain = CaffeDeepLabV2(5, **TINY)
    network = with_auxiliary(classifier_lr_scale=4.0)
    *others, group = network.parameter_groups()
    assert [group["name"] for group in others] == [group["name"] for group in plain.parameter_groups()]
    assert (group["name"], group["lr_scale"]) == ("auxiliary", 4.0)
    assert len(group["params"]) == 2 + 4
    names = list(network.state_dict())
    assert names[: len(plain.state_dict())] == list(plain.state_dict())
    assert all(name.startswith("auxiliary.") for name in names[len(plain.state_dict()) :])
    assert network.notes() == [
        *plain.notes(),
        "Auxiliary classifier: ASPP of level -2, weight 0.1",
        "Auxiliary classifier: ASPP of level 0, weight 0.4",
    ]
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    loaded = with_auxiliary(weights=str(tmp_path / "plain.pth"), min_loaded=1.0)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("level", [-2, 1])
def test_an_auxiliary_head_of_a_level_that_is_not_there_is_refused(level):
    with pytest.raises(ValueError, match=rf"found level={level}, but ResNet38 has 1 level\(s\), of strides \(8,\)"):
        EncoderDecoder(5, ResNet38(2), ASPP(), auxiliary=[Auxiliary(ASPP(), level)])


# Weights


def test_networks_tell_random_weights_from_loaded_ones(tmp_path):
    first = DeepLabV2(5, "resnet18")
    torch.save(first.state_dict(), tmp_path / "first.pth")
    assert first.random_weights
    assert not DeepLabV2(5, "resnet18", weights=str(tmp_path / "first.pth")).random_weights
    load_weights(first, tmp_path / "first.pth", min_share=1.0)
    assert not first.random_weights


def test_files_of_look_alikes_are_refused_by_every_network_of_a_backbone(tmp_path):
    torch.save(CaffeDeepLabV2(5, **TINY).state_dict(), tmp_path / "caffe.pth")
    with pytest.raises(WeightsError, match=r"caffe\.pth: found a Caffe-style DeepLab-v2"):
        EncoderDecoder(5, TimmPyramid("resnet18"), ASPP(), weights=str(tmp_path / "caffe.pth"))
    torch.save(timm.create_model("resnet50").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"resnet\.pth: found a ResNet with an ImageNet classifier"):
        EncoderDecoder(5, CaffeResNet(**TINY), ASPP(), weights=str(tmp_path / "resnet.pth"))


def test_networks_of_one_head_share_nothing():
    head = ASPP()
    first, second = (EncoderDecoder(5, CaffeResNet(**TINY), head) for _ in range(2))
    storages = [{tensor.data_ptr() for tensor in network.state_dict().values()} for network in (first, second)]
    assert not storages[0] & storages[1]


def test_notes_say_what_was_taken_over_from_the_published_program():
    assert CaffeDeepLabV2(5, **TINY).notes() == [
        "ASPP branches: 6, 12 (two of four, reference)",
    ]
    assert DeepLabV2(5, "resnet18", dilations=[6]).notes() == ["ASPP branches: 6"]
    assert FCN8s(5, "vgg11", fc_channels=6).notes() == []


def test_how_logits_are_upsampled_can_be_said():
    assert not EncoderDecoder(5, CaffeResNet(**TINY), ASPP(), align_corners=False).align_corners
    with pytest.raises(ValueError, match="Take another head"):
        EncoderDecoder(5, CaffeResNet(**TINY), LevelScores())


# From YAML


NETWORK = """
class_path: EncoderDecoder
init_args:
  backbone: {class_path: TimmPyramid, init_args: {name: resnet10t, output_stride: 16}}
  head: {class_path: ASPP, init_args: {dilations: [1, 3]}}
  auxiliary:
  - {head: ASPP, level: -2, weight: 0.4}
"""


def test_a_network_of_parts_trains_a_step_from_yaml_and_again_from_its_saved_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.yaml").write_text(NETWORK)
    arguments = ["fit", "--data", str(CONFIGS / "data/minicity.yaml"), "--data.num_workers", "0"]
    arguments += ["--model", str(CONFIGS / "method/dacs.yaml"), "--model.network", "network.yaml"]
    arguments += ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"]
    for name in ("source", "target", "val"):
        arguments += [f"--data.{name}.size", "[32, 64]"]

    first = run_trainer(arguments)
    second = run_trainer(["fit", "--config", "runs/run/version_0/config.yaml"])

    network = first.model.student
    assert isinstance(network, EncoderDecoder)
    assert network.num_classes == first.model.label_space.num_classes == 19
    assert network.strides == (4, 8, 16, 16)
    assert network.auxiliary_heads[0].weight == 0.4
    assert network.head.dilations == (1, 3)
    assert second.trainer.global_step == 1
    trained = second.model.student.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())
