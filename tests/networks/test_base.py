from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_uda.networks import Classifier, InputNormalization, Outputs, SegmentationNetwork, parameter_group


class TinyNetwork(SegmentationNetwork):
    def __init__(self, batch_norm: Any = "train") -> None:
        super().__init__(2, InputNormalization((10.0, 20.0, 30.0), (2.0, 4.0, 5.0)), (1,), (4,), batch_norm)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.apply_batch_norm_policy()

    def outputs(self, image: Tensor) -> Outputs:
        features = self.norm(self.conv(self.normalized(image)))
        return Outputs((Classifier(self.head(features)), Classifier(features, weight=0.5)), (features,))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [parameter_group("backbone", self.parameters())]


@pytest.mark.parametrize(("order", "expected"), [("rgb", (20.5, 26.875, -6.0)), ("bgr", (-5.0, 26.875, 4.2))])
def test_normalization_follows_channel_order(order, expected):
    image = torch.tensor([51.0, 127.5, 0.0]).div(255).view(1, 3, 1, 1)

    normalized = InputNormalization((10.0, 20.0, 30.0), (2.0, 4.0, 5.0), order)(image)

    assert torch.allclose(normalized.flatten(), torch.tensor(expected), atol=1e-5)


def test_normalization_leaves_no_trace_in_the_state_dict():
    assert not [name for name in TinyNetwork().state_dict() if "normalization" in name]


def test_forward_gives_the_logits_of_the_first_classifier():
    network = TinyNetwork().eval()
    image = torch.rand(2, 3, 5, 4)

    logits = network(image)

    expected = network.head(network.norm(network.conv(network.normalization(image))))
    assert torch.equal(logits, expected)
    first, second = network.outputs(image).classifiers
    assert torch.equal(first.logits, logits)
    assert (first.weight, first.window, second.weight) == (1.0, None, 0.5)


def test_networks_know_whether_their_weights_are_random():
    network, other = TinyNetwork(), TinyNetwork()
    assert network.random_weights
    assert copy.deepcopy(network).random_weights

    nn.ModuleDict({"student": network}).load_state_dict(nn.ModuleDict({"student": other}).state_dict())

    assert not network.random_weights
    assert not copy.deepcopy(network).random_weights
    assert other.random_weights


def test_groups_hold_trained_parameters_and_what_else_is_said():
    network = TinyNetwork("frozen_affine")
    group = parameter_group("backbone_first", [*network.conv.parameters(), network.norm.weight], 2.0, weight_decay=0.0)
    assert [id(p) for p in group.pop("params")] == [id(network.conv.weight), id(network.conv.bias)]
    assert group == {"name": "backbone_first", "lr_scale": 2.0, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("policy", "trains_affine", "training_mode"),
    [
        ("train", True, True),
        ("frozen_affine", False, True),
        ("frozen_statistics", True, False),
        ("eval", False, False),
    ],
)
def test_batch_norm_policy_survives_mode_changes(policy, trains_affine, training_mode):
    network = TinyNetwork(policy)
    assert network.norm.training is training_mode

    network.eval()
    assert not network.norm.training
    network.train()

    assert network.training
    assert network.conv.training
    assert network.norm.training is training_mode
    assert network.norm.weight.requires_grad is trains_affine
    assert network.norm.bias.requires_grad is trains_affine
    assert network.conv.weight.requires_grad
    before = network.norm.running_mean.clone()
    network(torch.rand(2, 3, 4, 4))
    assert torch.equal(network.norm.running_mean, before) is not training_mode


def test_unknown_batch_norm_policy_is_refused():
    with pytest.raises(ValueError, match=r"batch_norm='freeze'.*frozen_affine"):
        TinyNetwork("freeze")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalisation_stays_exact_where_weights_have_16_bits(dtype):
    image = torch.rand(1, 3, 4, 4)
    whole = InputNormalization((104.00698793, 116.66876762, 122.67891434), (58.4, 57.1, 57.4), "bgr")
    assert torch.equal(copy.deepcopy(whole).to(dtype)(image), whole(image))
    assert not whole.state_dict()
    assert whole.to("meta").mean.is_meta
