import torch
from lightning.pytorch import Trainer

from lightning_uda.callbacks import ChannelsLast
from lightning_uda.methods import DACS
from tests.callbacks.test_ema_teacher import QUIET
from tests.fixtures.tiny import tiny_data, tiny_network


def trained(*callbacks, path=None, further=()):
    network = tiny_network()
    network.backbone.extend(further)
    module = DACS(network=network, label_space="camvid")
    trainer = Trainer(max_steps=3, callbacks=list(callbacks), **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None), ckpt_path=path)
    return module, trainer


def test_weights_lie_channels_last_and_train_to_the_same(tmp_path):
    plain, _ = trained()
    module, trainer = trained(ChannelsLast())
    for network in (module.student, module.teacher):
        assert network.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert not network.backbone[0].weight.is_contiguous()
    for one, other in zip(plain.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)

    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    for callbacks in ((), (ChannelsLast(),)):
        resumed, _ = trained(*callbacks, path=path)
        assert resumed.student.backbone[0].weight.is_contiguous() != bool(callbacks)
        assert torch.equal(resumed.student.backbone[0].weight, module.student.backbone[0].weight)
