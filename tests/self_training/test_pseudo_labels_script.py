"""benchmarks/pseudo_labels.py: how good the labels of a run are."""

import csv
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_uda.cli import run_trainer
from tests.fixtures.tiny import TinyDataset

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/pseudo_labels.py"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two rounds on four target images."""
    folder = tmp_path_factory.mktemp("runs")
    datasets = {name: dataset(seed) for name, seed in (("source", 1), ("target", 2), ("val", 3))}
    crops = {name: {"class_path": "ScaledCrop", "init_args": {"crop": [16, 16]}} for name in ("source", "target")}
    content = {
        "name": "rounds",
        "data": {
            "class_path": "UDADataModule",
            "init_args": {
                **{"label_space": "camvid", "num_workers": 0, "batch_size": 2, **datasets},
                **{f"{name}_transform": crop for name, crop in crops.items()},
            },
        },
        "model": {
            "class_path": "SelfTraining",
            "init_args": {
                "network": {"class_path": "tests.fixtures.tiny.TinyNetwork"},
                "rounds": {"class_path": "SelfTrainingRounds", "init_args": {"num_rounds": 2}},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
            },
        },
        "trainer": {"log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    run_trainer(["fit", "--config", str(folder / "config.yaml"), "--output", str(folder)])
    return folder / "rounds"


def dataset(seed):
    return {"class_path": "tests.fixtures.tiny.TinyDataset", "init_args": {"length": 4, "seed": seed}}


def percent(part):
    return 100 * part.mean() if part.size else None


def close(cell, value):
    assert cell == "" if value is None else float(cell) == pytest.approx(value)


def test_labels_are_compared_with_the_truth_by_round_and_class(run, capsys):
    SCRIPT["main"]([str(run)])
    printed = capsys.readouterr().out
    with (run / "version_0/pseudo_labels.csv").open() as file:
        rows = {(int(row["round"]), row["class"]): row for row in csv.DictReader(file)}
    target = TinyDataset(length=4, seed=2)
    truth = np.stack([target.load_label(i) for i in range(4)])
    with (run / "version_0/iou.csv").open() as file:
        mious = [float(row["miou"]) for row in csv.DictReader(file)]
    assert len(mious) == 2, "a validation ends each round"
    names = ["Sky", "Building", "Pole", "Road"]
    assert len(rows) == 2 * 12
    for number in (1, 2):
        files = [run / f"version_0/rounds/round_{number}/{target.name(i)}.png" for i in range(4)]
        labels = np.stack([np.asarray(Image.open(path)) for path in files])
        for c, name in enumerate(names):
            row = rows[number, name]
            assert int(row["true_pixels"]) == (truth == c).sum()
            assert int(row["labelled_pixels"]) == (labels == c).sum()
            close(row["labelled"], percent(labels[truth == c] != 255))
            close(row["right"], percent(truth[(labels == c) & (truth != 255)] == c))
            assert row["miou_after"] == ""
        every = rows[number, "all classes"]
        known = truth != 255
        close(every["labelled"], percent(labels[known] != 255))
        close(every["right"], percent(truth[known & (labels != 255)] == labels[known & (labels != 255)]))
        assert float(every["miou_after"]) == pytest.approx(mious[number - 1], abs=1e-4)  # iou.csv has four decimals
        assert f"{mious[number - 1]:.1f}" in printed.splitlines()[-3] + printed.splitlines()[-4]
    assert any(float(rows[number, "all classes"]["right"]) > 0 for number in (1, 2))
    assert "1 run" in printed


def test_several_runs_are_averaged_and_may_go_to_one_file(run, tmp_path, capsys):
    output = tmp_path / "all.csv"
    SCRIPT["main"]([str(run), str(run / "version_0"), "--output", str(output)])
    assert "Pseudo-labels" in capsys.readouterr().out
    lines = output.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 1 + 2 * 12
    found = {"a": [(1, "x", 1, 1, 50.0, None, None)], "b": [(1, "x", 1, 1, 100.0, None, None)]}
    (_, labelled, right) = SCRIPT["table_of"](found).columns
    assert next(iter(labelled.cells)) == "75.0"
    assert next(iter(right.cells)) == "-"


def test_the_target_sets_labels_are_opened_whatever_training_did(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / "a.png")
    (tmp_path / "classes.json").write_text('{"ids": {"0": "Sky"}}')
    for name, given in (("CamVid", {"labelled": False}), ("FolderDataset", {"labels": None})):
        target = {"class_path": name, "init_args": {"root": str(tmp_path), **given}}
        made = SCRIPT["target_set"](SimpleNamespace(config={"data": {"init_args": {"target": target}}}))
        assert made.has_labels
        assert made.load_label(0).shape == (8, 8)


def test_runs_without_rounds_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="give run folders of self-training"):
        SCRIPT["rounds_of"](SimpleNamespace(folder=tmp_path))
