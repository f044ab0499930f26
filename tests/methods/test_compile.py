"""`torch.compile` of a method's networks: the same weights, under the same names, in the same checkpoints."""

import copy

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lightning_uda.methods import DACS, SourceOnly
from lightning_uda.networks import EncoderDecoder, LinearHead, SegmentationNetwork, TimmPyramid
from tests.fixtures.tiny import tiny_data, tiny_network

QUIET = {
    **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
    **{"num_sanity_val_steps": 0, "enable_checkpointing": False},
}


class Counted:
    """The backend "eager", which counts what it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def wrapped(module, backend):
    module.student = torch.compile(module.student, backend=backend)


def in_place(module, backend):
    module.student.compile(backend=backend)
    module.teacher.compile(backend=backend)


def train(how, max_steps, ckpt_path=None):
    torch._dynamo.reset()
    seed_everything(0)
    module, backend = DACS(network=tiny_network(), label_space="camvid"), Counted()
    if how is not None:
        how(module, backend)
    trainer = Trainer(max_steps=max_steps, **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None), ckpt_path=ckpt_path, weights_only=True)
    return trainer, module, backend


@pytest.mark.parametrize("how", [wrapped, pytest.param(in_place, marks=pytest.mark.slow)])
def test_a_compiled_run_and_a_plain_one_are_the_same_and_go_on_from_each_other(how, tmp_path):
    runs = {}
    for name, kind in (("plain", None), ("compiled", how)):
        trainer, module, backend = train(kind, 2)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        runs[name] = module.state_dict()
        assert (backend.graphs > 0) == (kind is not None)
    assert runs["plain"].keys() == runs["compiled"].keys()
    assert all(torch.equal(runs["plain"][name], runs["compiled"][name]) for name in runs["plain"])
    moved = [name for name in runs["plain"] if name.startswith("teacher.backbone.0")]
    start = tiny_network().state_dict()
    assert all(not torch.equal(runs["compiled"][name], start[name.removeprefix("teacher.")]) for name in moved)
    after = [
        train(kind, 4, tmp_path / f"{name}.ckpt")[1].state_dict() for name, kind in (("plain", how), ("compiled", None))
    ]
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


def test_the_network_stays_what_it_was():
    torch._dynamo.reset()
    network, backend = tiny_network(), Counted()
    module = SourceOnly(torch.compile(network, backend=backend), "camvid")
    assert module.student is network
    assert isinstance(module.student, SegmentationNetwork)
    assert list(module.student.state_dict()) == list(tiny_network().state_dict())
    copied = copy.deepcopy(module.student)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(module.student(images), copied(images))
    assert backend.graphs > 0


def test_parts_of_larger_networks_are_compiled_too():
    torch._dynamo.reset()
    network, backend = EncoderDecoder(5, TimmPyramid("test_resnet"), LinearHead()).eval(), Counted()
    network.attach("list", nn.Linear(2, 2))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        network.compile(backend=backend)
        assert torch.equal(network(images), expected)
    assert backend.graphs >= 2
