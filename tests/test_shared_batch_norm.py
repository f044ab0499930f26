"""BatchNorm over all processes: what is converted, and that nothing is lost by it; PyTorch computes it on GPUs only."""

import copy
import socket

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn

from lightning_uda.callbacks import EMATeacher
from lightning_uda.callbacks.memory_check import step_memory
from lightning_uda.methods import DACS, T2SDA, DAFormer, SourceOnly
from lightning_uda.networks import EncoderDecoder
from lightning_uda.networks.backbones import TimmPyramid
from lightning_uda.networks.heads import LinearHead
from lightning_uda.shared_batch_norm import SharedBatchNorm
from tests.fixtures.processes import run
from tests.fixtures.stages import write_config
from tests.fixtures.tiny import tiny_network
from tests.methods.test_step_costs import batch
from tests.test_checkpoints import error_of


def batch_norms(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def states_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def of_timm(name):
    return EncoderDecoder(11, TimmPyramid(name), LinearHead())


@pytest.fixture(params=["resnet18", "mobilenetv3_small_050", "regnetx_002"])
def network(request):
    torch.manual_seed(0)
    return of_timm(request.param).eval()


def test_a_network_computes_the_same_with_shared_batch_norm_and_after_it(network):
    image = torch.rand(1, 3, 64, 64)
    kinds, state = [type(layer) for layer in batch_norms(network)], copy.deepcopy(network.state_dict())
    with torch.no_grad():
        expected = network(image)
        shared = SharedBatchNorm()
        shared.apply(network)
        assert len(batch_norms(network)) == len(kinds) > 10
        assert all(isinstance(layer, nn.SyncBatchNorm) for layer in batch_norms(network))
        assert torch.equal(network(image), expected)
        assert states_equal(network.state_dict(), state)
        network.train().to("meta").to_empty(device="cpu").load_state_dict(state)  # its buffers are others now
        shared.revert(network)
        assert [type(layer) for layer in batch_norms(network)] == kinds
        assert all(layer.training for layer in batch_norms(network))
        assert torch.equal(network.eval()(image), expected)


def test_lost_activations_are_told():
    method = TorchSyncBatchNorm().apply(SourceOnly(network=of_timm("mobilenetv3_small_050"), label_space="camvid"))
    with pytest.raises(ValueError, match=r"student\..*bn1: found a SyncBatchNorm .* plugins=\[SharedBatchNorm\(\)\]"):
        method.on_fit_start()


@pytest.mark.parametrize("policy", ["train", "frozen_affine", "frozen_statistics"])
@pytest.mark.parametrize("kind", [DACS, DAFormer, T2SDA])
def test_students_and_teachers_are_converted_and_keep_their_modes(kind, policy):
    feature = {} if kind is DACS else {"feature_distance": None}
    method = kind(network=tiny_network(batch_norm=policy), label_space="camvid", **feature).train()
    modes = [layer.training for layer in batch_norms(method)]
    trained = [layer.weight.requires_grad for layer in batch_norms(method)]
    SharedBatchNorm().apply(method)
    for network in (method.student, method.teacher):
        assert {type(layer) for layer in batch_norms(network)} == {nn.SyncBatchNorm}
    for _ in range(2):
        assert [layer.training for layer in batch_norms(method)] == modes
        assert [layer.weight.requires_grad for layer in batch_norms(method)] == trained
        method.eval()
        assert not any(layer.training for layer in batch_norms(method))
        method.train()


@pytest.mark.parametrize("buffers", ["own", "copy", "average"])
def test_the_average_of_statistics_is_that_of_plain_layers(buffers):
    states = []
    for shares in (False, True):
        student, teacher = tiny_network(), tiny_network()
        student.backbone[1].running_mean += 1
        student.backbone[1].num_batches_tracked += 3
        if shares:
            SharedBatchNorm().apply(nn.ModuleList([student, teacher]))
        EMATeacher(0.9, warmup=False, buffers=buffers).update(student, teacher)
        states.append(teacher.state_dict())
    assert states_equal(*states)
    assert bool(states[1]["backbone.1.running_mean"].any()) == (buffers != "own")


def test_on_cpus_it_is_refused_before_a_run_begins(tmp_path):
    options = ["--trainer.sync_batchnorm", "true", "--trainer.devices", "2"]
    message = error_of("fit", "--config", write_config(tmp_path, "DACS"), *options)
    assert "trainer.sync_batchnorm: found true, but PyTorch shares the statistics of BatchNorm" in message
    assert message.count("\n") <= 1
    assert not (tmp_path / "DACS").exists()


def measured():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    for shares in (False, True):
        method = DACS(network=tiny_network(num_classes=19), label_space="cityscapes")
        if shares:
            SharedBatchNorm().apply(method)
        print(*step_memory(method, method.optimizer(method.student.parameter_groups()), batch("cpu"), None))


def test_the_memory_of_a_step_is_estimated_as_without():
    ended = run(measured)
    assert ended.returncode == 0, ended.stderr
    plain, shared = ended.stdout.splitlines()
    assert plain == shared
