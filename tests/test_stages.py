"""Every method goes through all stages by the command line: fit, validate, test, predict, and fit again to resume."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from tests.fixtures.stages import METHODS, run_stages, steps_of

ROOT = Path(__file__).parents[1]


def values(run, name):
    """What a run logged under a name, in its order."""
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(run, step):
    (path,) = run.glob(f"checkpoints/step={step}.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def check(runs, method, ranks=1):
    steps = steps_of(method, ranks)
    with (runs["fit"] / "metrics.csv").open() as file:
        losses = [name for name in next(csv.reader(file)) if name.startswith("train/loss")]
    trained = [value for name in losses for value in values(runs["fit"], name)]
    assert len(trained) >= steps
    assert all(math.isfinite(loss) for loss in trained)
    whole, resumed = weights(runs["fit"], steps), weights(runs["resume"], steps)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    if "validate" in runs:
        assert values(runs["validate"], "val/miou") == pytest.approx(values(runs["fit"], "val/miou")[-1:])
    if "test" in runs:
        (score,) = values(runs["test"], "test/miou")
        assert 0 < score <= 100
    if "predict" in runs:
        predicted = sorted((runs["predict"] / "predictions/id").glob("*.png"))
        assert [path.stem for path in predicted] == [f"tiny_2_{i}" for i in range(4)]
        assert all(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (24, 32) for path in predicted)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_through_all_stages(method, tmp_path):
    check(run_stages(tmp_path, method, num_workers=1 if method in ("DSP", "SelfTraining") else 0), method)


@pytest.mark.parametrize("method", METHODS)
def test_in_mixed_precision_too(method, tmp_path):
    check(run_stages(tmp_path, method, "--trainer.precision", "bf16-mixed", stages=("fit", "resume")), method)


def test_on_two_ranks_too(tmp_path):
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.fixtures.stages"]
    result = subprocess.run(
        [sys.executable, *program, str(tmp_path), "2"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-5000:]
    for method, runs in json.loads((tmp_path / "runs.json").read_text()).items():
        check({stage: Path(run) for stage, run in runs.items()}, method, ranks=2)
