from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_uda.networks import InputNormalization, SegmentationNetwork


class TinyNetwork(SegmentationNetwork):
    def __init__(self, batch_norm: Any = "train") -> None:
        super().__init__(2, InputNormalization((10.0, 20.0, 30.0), (2.0, 4.0, 5.0)), 1, 4, batch_norm)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.apply_batch_norm_policy()

    def encode(self, inputs: Tensor) -> Tensor:
        return self.norm(self.conv(inputs))

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)

    def parameter_groups(self) -> list[dict[str, Any]]:
        params = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"name": "backbone", "params": params, "lr_scale": 1.0, "update_repeats": 1}]


@pytest.mark.parametrize(("order", "expected"), [("rgb", (20.5, 26.875, -6.0)), ("bgr", (-5.0, 26.875, 4.2))])
def test_normalization_follows_channel_order(order, expected):
    image = torch.tensor([51.0, 127.5, 0.0]).div(255).view(1, 3, 1, 1)

    normalized = InputNormalization((10.0, 20.0, 30.0), (2.0, 4.0, 5.0), order)(image)

    assert torch.allclose(normalized.flatten(), torch.tensor(expected), atol=1e-5)


def test_normalization_leaves_no_trace_in_the_state_dict():
    assert not [name for name in TinyNetwork().state_dict() if "normalization" in name]


def test_forward_normalizes_encodes_and_classifies():
    network = TinyNetwork().eval()
    image = torch.rand(2, 3, 5, 4)

    logits, features = network.forward_features(image)

    assert torch.equal(features, network.encode(network.normalization(image)))
    assert torch.equal(logits, network.classify(features))
    assert torch.equal(network(image), logits)


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
