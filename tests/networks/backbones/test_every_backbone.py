"""What holds for every backbone: its levels, its gradients, with checkpointing and without, in 16 bits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uda.networks import CaffeResNet, EncoderDecoder, SegFormerHead
from tests.fixtures.backbones import BACKBONES
from tests.fixtures.choices import few_of


@pytest.fixture(scope="module", params=few_of(BACKBONES, "resnet", "convnext", "vit", "mit", "caffe"))
def networks(request):
    """A network and its like that computes blocks again."""
    torch.manual_seed(0)
    head = SegFormerHead(8)
    network = EncoderDecoder(5, BACKBONES[request.param](), head)
    again = EncoderDecoder(5, BACKBONES[request.param](), head, checkpointing=True)
    again.load_state_dict(network.state_dict())
    return network, copy.deepcopy(again)


def loss_of(network, image):
    torch.manual_seed(1)
    (classifier,), features = network.outputs(image)
    return classifier.logits.square().mean() + sum(level.square().mean() for level in features)


def gradients(network, image):
    """Gradients and buffers after one step, and the floats that the forward pass kept for the backward pass."""
    kept = []

    def pack(tensor):
        kept.append(0 if isinstance(tensor, nn.Parameter) else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(network, image)
    loss.backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}
    network.zero_grad(set_to_none=True)
    return found, {name: buffer.clone() for name, buffer in network.named_buffers()}, sum(kept)


def test_checkpointing_changes_memory_and_nothing_else(networks):
    """Gradients, running statistics and the draws of dropout and drop-path are the same; every parameter is trained."""
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    (plain, statistics, kept), (again, statistics_again, kept_again) = (gradients(n, image) for n in networks)
    assert [name for name, gradient in plain.items() if gradient is None] == []
    assert all(torch.equal(gradient, again[name]) for name, gradient in plain.items())
    assert all(torch.equal(buffer, statistics_again[name]) for name, buffer in statistics.items())
    assert kept_again < 0.7 * kept


@pytest.mark.parametrize("size", [(64, 96), (50, 75)])
def test_levels_are_as_declared_for_images_of_any_size(networks, size):
    network = networks[0].eval()
    with torch.no_grad():
        levels = network.outputs(torch.rand(1, 3, *size)).features
    network.train()
    expected = torch.tensor([[-(-side // stride) for side in size] for stride in network.strides])
    excess = torch.tensor([level.shape[2:] for level in levels]) - expected
    assert excess.min() == 0 or isinstance(network.backbone, CaffeResNet)
    assert excess.max() <= isinstance(network.backbone, CaffeResNet)  # whose pooling may give one more
    assert [level.shape[1] for level in levels] == list(network.channels)


def test_bf16_gives_finite_losses_and_gradients(networks):
    network = networks[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(network, torch.rand(2, 3, 64, 64))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.requires_grad)
    network.zero_grad(set_to_none=True)


def test_groups_hold_every_trained_parameter_once(networks):
    network = networks[0]
    members = [id(parameter) for group in network.parameter_groups() for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in network.parameters() if parameter.requires_grad)


def test_a_deterministic_network_draws_nothing_but_normalises_by_the_batch(networks):
    network = copy.deepcopy(copy.deepcopy(networks[0]).make_deterministic()).eval().train()
    image = torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    with torch.no_grad():
        first = network(image)
        state = torch.get_rng_state()
        assert torch.equal(first, network(image))
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    norms = list(network.batch_norm_modules())
    assert all(norm.training for norm in norms)
    assert not any(layer.training for layer in network.modules() if layer not in {*norms, network})


@pytest.mark.parametrize("name", ["pvt", "vit", "dinov3", "mit"])
def test_attention_is_fused(name, monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return fused(*args, **kwargs)

    backbone = BACKBONES[name]()
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        backbone(torch.rand(1, 3, 64, 64))
    assert len(calls) == len(list(backbone.blocks()))
