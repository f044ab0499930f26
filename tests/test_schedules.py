"""The checkpoints that shipped schedules keep."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_uda.cli import run_trainer
from lightning_uda.methods import SourceOnly
from lightning_uda.report import load_runs
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
    for checkpoint in checkpoints:
        if checkpoint._every_n_train_steps == 1000:  # of folders, whose last one needs no validation
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
    assert best


@pytest.mark.parametrize(("patience", "end"), [(1, 4), (2, 6), (3, 8)])
def test_early_stopping_by_config_keeps_the_step_it_stopped_at_and_the_best(patience, end, tmp_path, monkeypatch):
    monkeypatch.setattr(
        SourceOnly, "_log_miou", lambda self, stage: self.log("val/miou", 30.0 - self.global_step, prog_bar=True)
    )
    data = {name: {"class_path": "tests.fixtures.tiny.TinyDataset"} for name in ("source", "val")}
    content = {
        "data": {"class_path": "UDADataModule", "init_args": {"label_space": "camvid", "num_workers": 0, **data}},
        "model": {
            "class_path": "SourceOnly",
            "init_args": {"network": {"class_path": "tests.fixtures.tiny.TinyNetwork"}},
        },
        "trainer": {"include": str(SCHEDULES[0].with_name("minicity.yaml")), "max_steps": 8, "val_check_interval": 2},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    stop = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/miou --trainer.callbacks.mode=max"
    options = [*stop.split(), f"--trainer.callbacks.patience={patience}", "--trainer.log_every_n_steps=1"]
    options += ["--trainer.enable_progress_bar=false", "--output", str(tmp_path), "--name", "run"]
    cli = run_trainer(["fit", "--config", str(tmp_path / "config.yaml"), *options])
    assert cli.trainer.global_step == end
    folder = tmp_path / "run/version_0"
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == end
    assert [path.name for path in folder.glob("checkpoints/best*")] == ["best_step2_miou28.0.ckpt"]
    notes = (folder / "notes.txt").read_text().splitlines()
    note = f"stopped early: step {end} of 8, by val/miou, a choice that uses target labels"
    assert [line for line in notes if "stopped" in line] == [note] * (end < 8)
    (run,) = load_runs([folder])
    assert run.finished
    assert run.last_evaluation == end


def test_a_run_that_was_not_stopped_has_no_note_of_it(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="run")
    callbacks = [pl.callbacks.EarlyStopping("val/miou", patience=9, mode="max")]
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=callbacks, max_steps=4, val_check_interval=2, log_every_n_steps=1,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Falling(tiny_network(), "camvid"), datamodule=tiny_data())
    assert trainer.global_step == 4
    assert "stopped" not in (tmp_path / "run/notes.txt").read_text()
