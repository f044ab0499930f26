"""The checkpoints that shipped schedules keep."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_uda.methods import SourceOnly
from tests.fixtures.tiny import tiny_data, tiny_network

SCHEDULES = sorted((Path(__file__).parents[1] / "configs/schedule").glob("*.yaml"))


class Falling(SourceOnly):
    """Its validation gets worse and worse."""

    def on_validation_epoch_end(self):
        self.log("val/miou", 30.0 - self.global_step)


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.stem)
def test_last_is_the_last_step_and_not_the_best(path, tmp_path):
    callbacks = [
        part for part in yaml.safe_load(path.read_text())["callbacks"] if "ModelCheckpoint" in part["class_path"]
    ]
    checkpoints = [ModelCheckpoint(tmp_path, **part["init_args"]) for part in callbacks]
    if path.stem == "folders":  # made for sets without validation
        for checkpoint in checkpoints:
            checkpoint._every_n_train_steps = 2
    module = Falling(tiny_network(), "camvid")
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=checkpoints, max_steps=6, val_check_interval=2,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=tiny_data())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    best = [file for file in tmp_path.glob("best*.ckpt")]
    assert all(torch.load(file, weights_only=True)["global_step"] == 2 for file in best)
    assert bool(best) == (path.stem != "folders")
