import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import SGD, AdamW

from lightning_uda.callbacks import MemoryCheck, memory_check
from lightning_uda.callbacks.memory_check import available, step_memory
from lightning_uda.methods import DACS, DSP, EHTDI, T2SDA, DAFormer, SourceOnly
from lightning_uda.networks.checkpointing import recompute
from tests.callbacks.test_finite_check import QUIET
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_step_costs import batch

SIDE, DEPTH = 256, 8
MATRIX = 4 * SIDE * SIDE


class Chain(LightningModule):
    """A chain of matrices, each of which keeps its input and its output for the backward pass."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(SIDE, SIDE)) for _ in range(DEPTH))
        self.register_buffer("offset", torch.zeros(SIDE))

    def training_step(self, batch, batch_idx):
        x = batch["x"]
        for weight in self.weights:
            x = torch.matmul(x, weight).tanh()
        return x.mean()


@pytest.mark.parametrize(("kind", "states"), [(SGD, 0), (AdamW, 2), (partial(AdamW, fused=True), 2)])
def test_what_a_step_keeps_is_counted(kind, states):
    module, images = Chain(), {"x": torch.zeros(SIDE, SIDE)}
    optimizer = kind(module.parameters(), lr=0.1)
    found = step_memory(module, optimizer, images, None)
    assert found.weights == DEPTH * MATRIX + 4 * SIDE
    assert states * DEPTH * MATRIX <= found.optimizer <= states * DEPTH * (MATRIX + 8)
    assert found.batch == MATRIX
    assert DEPTH <= found.step / MATRIX <= DEPTH + 5  # its outputs; gradients as these go
    assert found.total == sum(found)
    assert not optimizer.state
    assert all(weight.grad is None and not weight.is_meta for weight in module.parameters())


def test_mixed_precision_keeps_halves():
    module, images = Chain(), {"x": torch.zeros(SIDE * 64, SIDE)}
    full, half = (step_memory(module, SGD(module.parameters()), images, kind) for kind in (None, torch.bfloat16))
    assert 0.5 <= half.step / full.step <= 0.56  # and the weights once more


@pytest.mark.parametrize("method", [DSP, EHTDI, DAFormer, T2SDA])
def test_terms_of_all_kinds_are_estimated_in_mixed_precision(method):
    module = method(network=tiny_network(num_classes=19), label_space="cityscapes")
    before = copy.deepcopy(module.state_dict())
    optimizer = module.optimizer(module.student.parameter_groups())
    found = step_memory(module, optimizer, batch("cpu"), torch.bfloat16)
    assert found.step > found.batch > 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_activations_of_one_view_at_a_time_are_estimated_too():
    module = DACS(network=tiny_network(num_classes=19), label_space="cityscapes")
    module.trainer = Trainer(accelerator="cpu", barebones=True)
    optimizer = module.optimizer(module.student.parameter_groups())
    module.trainer.strategy.connect(module)
    module.trainer.optimizers = [optimizer]
    steps = []
    for module.backward_per_view in (False, True):
        steps.append(step_memory(module, optimizer, batch("cpu"), torch.bfloat16).step)
    assert steps[1] < 0.9 * steps[0]


def test_blocks_that_are_computed_again_are_estimated_in_mixed_precision():
    steps = []
    for again in (False, True):
        module = SourceOnly(network=tiny_network(num_classes=19), label_space="cityscapes")
        if again:
            recompute(module.student.backbone)
        optimizer = module.optimizer(module.student.parameter_groups())
        steps.append(step_memory(module, optimizer, batch("cpu"), torch.bfloat16).step)
    assert steps[1] == pytest.approx(steps[0], rel=0.1)  # one small block, which is whole again at the end


@pytest.mark.parametrize("there", [None, 10**12, 1000])
def test_a_gpu_that_is_too_small_is_warned_of_once_before_the_first_step(there, monkeypatch, caplog):
    monkeypatch.setattr(memory_check, "available", lambda device: there)
    weights = []
    for callbacks in ([], [MemoryCheck()]):
        module = DACS(network=tiny_network(), label_space="camvid", backward_per_view=True)
        torch.manual_seed(0)
        trainer = Trainer(callbacks=callbacks, max_steps=2, enable_checkpointing=False, **QUIET)
        trainer.fit(module, datamodule=tiny_data(val=None))
        weights.append([*module.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    said = [message for message in caplog.messages if "the GPU may" in message]
    assert len(said) == (there == 1000)
    for message in said:
        assert message.startswith("the GPU may not hold this training: by an estimate it needs 0.0 GB (weights 0.00,")
        assert "and has 0.0 GB. In the order of what it costs: --trainer.precision bf16-mixed" in message


def test_a_step_that_needs_numbers_is_trained_without_an_estimate(monkeypatch, caplog):
    class Reads(SourceOnly):
        """A method that reads a number back."""

        def algorithm(self, step):
            super().algorithm(step)
            float(step.loss.detach())

    caplog.set_level("INFO")
    monkeypatch.setattr(memory_check, "available", lambda device: 1000)
    trainer = Trainer(callbacks=[MemoryCheck()], max_steps=1, enable_checkpointing=False, **QUIET)
    trainer.fit(Reads(network=tiny_network(), label_space="camvid"), datamodule=tiny_data(val=None))
    assert trainer.global_step == 1
    assert "what a step needs of the GPU's memory can't be estimated" in caplog.text


def test_a_cpu_is_not_looked_at():
    assert available(torch.device("cpu")) is None
