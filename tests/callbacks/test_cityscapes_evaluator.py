"""What is predicted in the submission format scores the same with the official evaluator as what is validated here."""

import csv
import math

import cv2
import numpy as np
import pytest
import yaml

from lightning_uda.__main__ import main
from lightning_uda.label_spaces import CITYSCAPES_IDS

FRAMES = [f"lindau_{i:06d}_000019" for i in range(2)]


def write_images(root):
    rng = np.random.default_rng(3)
    for tree in ("leftImg8bit", "gtFine"):
        (root / tree / "val/lindau").mkdir(parents=True)
    for name in FRAMES:
        coarse = rng.integers(0, 256, (16, 32, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (2048, 1024), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / f"leftImg8bit/val/lindau/{name}_leftImg8bit.png"), image)


def write_labels(root, predictions):
    """Labels that agree in part with the predictions, have void ids, and lack a class that is predicted."""
    rng = np.random.default_rng(4)
    predicted = np.unique([np.unique(prediction) for prediction in predictions])
    lacking, instead = int(predicted[0]), int(predicted[-1])
    assert lacking != instead
    for name, prediction in zip(FRAMES, predictions, strict=True):
        noise = rng.choice(np.arange(0, 28, dtype=np.uint8), (32, 64)).repeat(32, 0).repeat(32, 1)
        label = np.where(rng.random((64, 128)).repeat(16, 0).repeat(16, 1) < 0.6, prediction, noise)
        label[label == lacking] = instead
        cv2.imwrite(str(root / f"gtFine/val/lindau/{name}_gtFine_labelIds.png"), label)
    return CITYSCAPES_IDS[lacking]


@pytest.mark.slow
def test_predictions_for_the_test_server_score_with_the_official_evaluator_as_here(tmp_path, monkeypatch):
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path)
    images = {"class_path": "ImageFolder", "init_args": {"root": str(tmp_path / "leftImg8bit/val")}}
    network = {"class_path": "tests.fixtures.tiny.TinyNetwork"}
    outputs = [{"class_path": "CityscapesLabelIds", "init_args": {"zip": True}}]
    content = {
        "name": "tiny",
        "seed_everything": 4,
        "data": {
            "class_path": "UDADataModule",
            "init_args": {"label_space": "cityscapes", "predict": images, "num_workers": 0},
        },
        "model": {"class_path": "SourceOnly", "init_args": {"network": network}},
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "PredictionWriter", "init_args": {"output_dir": "out", "outputs": outputs}}],
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    main(["predict", "--config", "config.yaml"])
    files = [next((tmp_path / "out/label_ids").rglob(f"{name}_pred_labelIds.png")) for name in FRAMES]
    lacking = write_labels(tmp_path, [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files])
    del content["trainer"]["callbacks"], content["data"]["init_args"]["predict"]
    content["data"]["init_args"]["val"] = {
        "class_path": "Cityscapes",
        "init_args": {"root": str(tmp_path), "split": "val"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    main(["validate", "--config", "config.yaml"])

    official.args.evalInstLevelScore = official.args.JSONOutput = False
    official.args.quiet = True
    truth = [str(tmp_path / f"gtFine/val/lindau/{name}_gtFine_labelIds.png") for name in FRAMES]
    scores = official.evaluateImgLists([str(file) for file in files], truth, official.args)
    with next(tmp_path.glob("runs/tiny/version_*/iou.csv")).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["miou"]) == pytest.approx(100 * scores["averageScoreClasses"], abs=1e-4)
    ours = {name: float(row[f"iou_{name}"] or "nan") for name in CITYSCAPES_IDS.values()}
    theirs = {name: 100 * scores["classScores"][name] for name in ours}
    assert ours == pytest.approx(theirs, abs=1e-4, nan_ok=True)
    assert scores["classScores"][lacking] == 0.0
    assert sum(math.isnan(score) for score in scores["classScores"].values()) > 0
    assert sum(score > 50 for score in theirs.values()) >= 2
