import torch
from torch import nn

from lightning_uda.callbacks import FastDepthwise
from lightning_uda.networks.depthwise import DepthwiseConv2d
from tests.callbacks import test_channels_last


def trained(*callbacks, path=None):
    torch.manual_seed(1)
    further = [nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8)]
    return test_channels_last.trained(*callbacks, path=path, further=further)


def test_convolutions_of_all_networks_change_and_train_to_the_same(tmp_path):
    plain, _ = trained()
    module, trainer = trained(FastDepthwise())
    for network in (module.student, module.teacher):
        assert isinstance(network.backbone[-1], DepthwiseConv2d)
    for one, other in zip(plain.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)

    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    for callbacks in ((), (FastDepthwise(),)):
        resumed, _ = trained(*callbacks, path=path)
        assert isinstance(resumed.student.backbone[-1], DepthwiseConv2d) == bool(callbacks)
        assert torch.equal(resumed.student.backbone[-1].weight, module.student.backbone[-1].weight)
