"""What a training leaves is what the report reads."""

import csv
import io

import pytest
import rich
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from lightning_uda.callbacks import IoUTable
from lightning_uda.methods import DACS
from lightning_uda.report import load_runs, report
from tests.fixtures.tiny import tiny_data, tiny_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(
        accelerator="cpu", max_steps=4, val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        callbacks=[IoUTable(False)], logger=CSVLogger(folder, name="dacs"), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(DACS(network=tiny_network(), label_space="camvid"), datamodule=tiny_data())
    return folder / "dacs/version_0"


@pytest.fixture(scope="module")
def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_scores_are_those_logged(folder, rows):
    (run,) = load_runs([folder.parent])
    logged = [row for row in rows if row["val/miou"]]
    steps, values = run.scores("miou")
    assert steps == [2, 4]
    assert values == pytest.approx([float(row["val/miou"]) for row in logged], rel=1e-6)
    absent = [name for name in run.classes if run.value(f"iou_{name}") is None]
    assert absent == [name for name in run.classes if not logged[-1].get(f"val/iou_{name}")]
    assert (folder / "iou.csv").read_text().splitlines()[-1].startswith(f"4,val,{round(values[-1], 4)},")


def test_notes_and_losses_are_shown(folder, rows, tmp_path, monkeypatch):
    console = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(rich, "_console", console)
    report([folder], tmp_path / "report.html")
    lines = console.file.getvalue().splitlines()
    notes = (folder / "notes.txt").read_text().splitlines()
    assert notes
    assert set(notes) <= set(lines)
    page = (tmp_path / "report.html").read_text()
    last = [row for row in rows if row["train/loss"]][-1]
    named = {name.removeprefix("train/loss_"): value for name, value in last.items() if name.startswith("train/loss_")}
    assert {"source", "mixed"} <= set(named)
    for name, value in {**named, "total": last["train/loss"]}.items():
        assert [name, f"{float(value):.3g}"] in [line.split() for line in lines]
        assert f"<td>{name}</td><td>{float(value):.3g}</td>" in page
