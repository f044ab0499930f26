import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_uda.callbacks import AdaptBatchNorm
from lightning_uda.methods import AdaBN, SourceOnly
from tests.fixtures.tiny import TinyDataset, TinyNetwork, tiny_data, tiny_network
from tests.methods.test_dacs import QUIET


class Seen(SourceOnly):
    """Keeps the BatchNorm statistics that validation runs with."""

    def validation_step(self, batch, batch_idx):
        self.seen = {name: buffer.clone() for name, buffer in self.student.backbone[1].named_buffers()}
        return super().validation_step(batch, batch_idx)


def statistics(module):
    return {name: buffer.clone() for name, buffer in module.student.backbone[1].named_buffers()}


def test_evaluation_takes_the_statistics_of_all_target_images_and_puts_the_old_ones_back():
    module, data = Seen(tiny_network(batch_norm="eval"), "camvid"), tiny_data()
    before = statistics(module)
    trainer = Trainer(callbacks=[AdaptBatchNorm(batch_size=100)], **QUIET)
    trainer.validate(module, datamodule=data, verbose=False)

    images = torch.stack([torch.from_numpy(data.target.load_image(i)).permute(2, 0, 1) for i in range(7)]) / 255
    inner = module.student.backbone[0](module.student.normalization(images)).detach()
    assert torch.allclose(module.seen["running_mean"], inner.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(module.seen["running_var"], inner.var((0, 2, 3)), rtol=1e-4)
    assert all(torch.equal(buffer, before[name]) for name, buffer in statistics(module).items())
    assert module.student.backbone[1].momentum == 0.1
    assert not module.student.backbone[1].training


def test_training_and_checkpoints_are_those_of_source_only(tmp_path):
    def train(method, folder):
        torch.manual_seed(0)
        trainer = Trainer(
            max_steps=4,
            val_check_interval=2,
            check_val_every_n_epoch=None,
            default_root_dir=folder,
            callbacks=[ModelCheckpoint(dirpath=folder, filename="{step}", monitor="val/miou", save_top_k=-1)],
            **{**QUIET, "enable_checkpointing": True},
        )
        module = method(tiny_network(), "camvid")
        trainer.fit(module, datamodule=tiny_data())
        kept = [torch.load(folder / f"step={step}.ckpt", weights_only=True)["state_dict"] for step in (2, 4)]
        return [module.state_dict(), *kept], trainer.callback_metrics["val/miou"]

    plain, plain_miou = train(SourceOnly, tmp_path / "a")
    adapted, adapted_miou = train(AdaBN, tmp_path / "b")
    for without, with_callback in zip(plain, adapted, strict=True):
        names = [name for name in without if name.startswith("student")]
        assert names
        assert all(torch.equal(without[name], with_callback[name]) for name in names)
    assert plain_miou != adapted_miou


def test_statistics_taken_at_the_start_stay_and_are_not_taken_again_on_resuming(tmp_path):
    def train(steps, ckpt_path=None, **data):
        module = Seen(tiny_network(batch_norm="frozen_statistics"), "camvid")
        callbacks = [
            AdaptBatchNorm(when="start"),
            ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1),
        ]
        settings = {**QUIET, "enable_checkpointing": True, "val_check_interval": 2, "check_val_every_n_epoch": None}
        trainer = Trainer(max_steps=steps, callbacks=callbacks, default_root_dir=tmp_path, **settings)
        trainer.fit(module, datamodule=tiny_data(**data), ckpt_path=ckpt_path)
        return module

    module = train(2)
    adapted = statistics(module)
    assert not torch.equal(adapted["running_mean"], statistics(Seen(tiny_network(), "camvid"))["running_mean"])
    assert all(torch.equal(buffer, module.seen[name]) for name, buffer in adapted.items())
    resumed = train(4, tmp_path / "step=2.ckpt", target=TinyDataset(seed=8))
    assert all(torch.equal(buffer, adapted[name]) for name, buffer in statistics(resumed).items())
    plain = train(4, target=TinyDataset(seed=8))
    assert not torch.equal(statistics(plain)["running_mean"], adapted["running_mean"])


def test_statistics_at_the_start_leave_layers_in_the_mode_of_the_networks_policy():
    for policy, training in (("train", True), ("frozen_affine", True), ("frozen_statistics", False), ("eval", False)):
        module = SourceOnly(tiny_network(batch_norm=policy), "camvid")
        Trainer(max_steps=1, callbacks=[AdaptBatchNorm(when="start")], **QUIET).fit(module, datamodule=tiny_data())
        layer = module.student.backbone[1]
        assert (layer.training, layer.momentum) == (training, 0.1)


def test_images_are_spread_over_the_set():
    data = tiny_data()
    names = [name for batches in data.target_dataloader(3, 2) for batch in batches for name in batch["name"]]
    assert names == ["tiny_2_0", "tiny_2_3", "tiny_2_6"]


class TwoSizes(TinyDataset):
    def load_image(self, index):
        return super().load_image(index)[: 16 if index % 2 else None]


def test_images_of_different_sizes_make_batches_of_their_own():
    data = tiny_data(target=TwoSizes(seed=2))
    shapes = [[tuple(batch["image"].shape) for batch in batches] for batches in data.target_dataloader(4, 4)]
    assert len(shapes[0]) == 2
    assert {shape[0] for shape in shapes[0]} == {2}
    Trainer(callbacks=[AdaptBatchNorm()], **QUIET).validate(SourceOnly(tiny_network(), "camvid"), datamodule=data)


def test_what_cannot_work_is_refused():
    class Plain(TinyNetwork):
        def __init__(self):
            super().__init__()
            self.backbone[1] = nn.Identity()

    with pytest.raises(ValueError, match="Plain has no BatchNorm layer"):
        Trainer(callbacks=[AdaptBatchNorm()], **QUIET).validate(SourceOnly(Plain(), "camvid"), datamodule=tiny_data())
    with pytest.raises(ValueError, match="found when='once'; expected one of"):
        AdaptBatchNorm(when="once")
    with pytest.raises(ValueError, match="num_images: found 0"):
        AdaptBatchNorm(num_images=0)
    with pytest.raises(RuntimeError, match=r"data\.target isn't set"):
        Trainer(callbacks=[AdaptBatchNorm()], **QUIET).validate(
            SourceOnly(tiny_network(), "camvid"), datamodule=tiny_data(target=None)
        )
    module = Seen(tiny_network(), "camvid")
    with pytest.raises(RuntimeError, match=r"data\.target isn't set"):
        Trainer(callbacks=[AdaptBatchNorm()], max_steps=1, **QUIET).fit(module, datamodule=tiny_data(target=None))
    assert not module.trainer.global_step
