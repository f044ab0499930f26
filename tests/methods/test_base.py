import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_uda.methods import DACS, SourceOnly
from lightning_uda.metrics.segmentation import iou_per_class, mean_iou
from lightning_uda.optim import Poly
from tests.fixtures.tiny import TinyDataset, tiny_data, tiny_network

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def train(folder, ckpt_path=None, workers=0, accumulate=1):
    """A run of 6 steps with a checkpoint and a row of metrics after each."""
    module = DACS(tiny_network(), "camvid", schedule=Poly(0.9), seed=3)
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        max_steps=6,
        val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(folder, name="", version="log"),
        callbacks=[checkpoint],
        **QUIET,
    )
    trainer.fit(module, datamodule=tiny_data(workers, seed=3), ckpt_path=ckpt_path)
    return module, trainer


def rows_from(folder, step):
    """Lines of metrics.csv from a step on, as sorted column-value pairs."""
    header, *lines = (folder / "log" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    return [sorted((k, v) for k, v in row.items() if v and k != "epoch") for row in rows if int(row["step"]) >= step]


def flat(state):
    if isinstance(state, dict):
        return [item for key in sorted(state, key=str) for item in flat(state[key])]
    if isinstance(state, list | tuple):
        return [item for value in state for item in flat(value)]
    return [state]


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 1), (0, 2)])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, workers, accumulate):
    whole, whole_trainer = train(tmp_path / "whole", accumulate=accumulate)
    middle = str(tmp_path / "whole" / "step=3.ckpt")
    resumed, resumed_trainer = train(tmp_path / "resumed", middle, workers, accumulate)

    assert resumed_trainer.global_step == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    optimizers = [flat(trainer.optimizers[0].state_dict()) for trainer in (whole_trainer, resumed_trainer)]
    for a, b in zip(*optimizers, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert rows_from(tmp_path / "whole", 3) == rows_from(tmp_path / "resumed", 3)
    assert len(rows_from(tmp_path / "whole", 3)) >= 4


def test_groups_have_rates_of_their_own_and_follow_the_schedule():
    rates = []

    class Recorded(SourceOnly):
        def training_step(self, batch, batch_idx):
            rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
            return super().training_step(batch, batch_idx)

    module = Recorded(tiny_network(), "camvid", optimizer=lambda p: torch.optim.SGD(p, lr=0.01), schedule=Poly(1.0))
    Trainer(max_steps=4, logger=False, enable_checkpointing=False, **QUIET).fit(module, datamodule=tiny_data(val=None))
    expected = [0.01, 0.0075, 0.005, 0.0025]
    assert [r[0] for r in rates] == pytest.approx(expected)
    assert [r[1] for r in rates] == pytest.approx([10 * r for r in expected])


def test_validation_gives_the_mean_iou_of_all_images(tmp_path):
    module, data = SourceOnly(tiny_network(), "camvid"), tiny_data()
    (metrics,) = Trainer(logger=False, **QUIET).validate(module, datamodule=data, verbose=False)
    confusion = torch.zeros(11, 11, dtype=torch.long)
    module.eval()
    for batch in data.val_dataloader():
        predicted, mask = module.predict_labels(batch["image"], (24, 32)), batch["mask"].long()
        valid = mask != 255
        confusion += torch.bincount(11 * mask[valid] + predicted[valid], minlength=121).view(11, 11)
    assert metrics["val/miou"] == pytest.approx(100 * mean_iou(iou_per_class(confusion)).item())
    (tested,) = Trainer(logger=False, **QUIET).test(module, datamodule=data, verbose=False)
    assert tested["test/miou"] == pytest.approx(metrics["val/miou"])


def test_class_counts_must_agree():
    with pytest.raises(
        ValueError, match=r"network has 11 classes, the label space 'cityscapes' has 19.*num_classes=19"
    ):
        SourceOnly(tiny_network(), "cityscapes")


def test_a_checkpoint_of_other_classes_or_another_network_is_refused(tmp_path):
    module, _ = train(tmp_path)
    checkpoint = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)
    other = SourceOnly(tiny_network(num_classes=19), "cityscapes")
    with pytest.raises(ValueError, match=r"trained on 11 classes \['Sky'.*this run has 19"):
        other.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"doesn't fit SourceOnly: .* e\.g\. \['teacher\."):
        SourceOnly(tiny_network(), "camvid").on_load_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)


def test_runs_without_a_number_of_steps_are_refused():
    trainer = Trainer(max_epochs=1, limit_train_batches=1, logger=False, enable_checkpointing=False, **QUIET)
    with pytest.raises(ValueError, match=r"trainer\.max_steps: found -1"):
        trainer.fit(SourceOnly(tiny_network(), "camvid"), datamodule=tiny_data(val=None))


def test_random_numbers_of_a_step_depend_on_seed_and_step():
    draws = {
        (seed, step): torch.rand(
            3, generator=SourceOnly(tiny_network(), "camvid", seed=seed).step_generator(step)
        ).tolist()
        for seed in (0, 1)
        for step in (0, 1)
        for _ in range(2)
    }
    assert len({tuple(draw) for draw in draws.values()}) == 4


def test_predictions_have_the_sizes_of_the_files():
    data = tiny_data(predict=TinyDataset(length=2, size=(20, 44), has_labels=False))
    predictions = Trainer(logger=False, **QUIET).predict(SourceOnly(tiny_network(), "camvid"), datamodule=data)
    assert [p["pred"].shape for p in predictions] == [(1, 20, 44)] * 2
    assert predictions[0]["pred"].dtype == torch.uint8
    assert predictions[0]["name"] == ["tiny_0_0"]
