"""Two processes, on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_uda.metrics import find_confusions, latest_image_scores, read_confusion
from tests.fixtures.two_ranks import train

ROOT = Path(__file__).parents[1]


SCOPES = [None, "within_1px_of_borders", "beyond_1px_of_borders"]


def matrices(run):
    """The matrices of a run's only evaluation by their scope."""
    files = find_confusions(run)
    assert [(file.step, file.number, file.scope) for file in files] == [(3, 1, scope) for scope in SCOPES]
    return {file.scope: read_confusion(file.path)[0] for file in files}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    train(folder, devices=1)
    command = [sys.executable, "-m", "tests.fixtures.two_ranks", str(folder), "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert (folder / "2/version_0/panels/step_000003/val_1_prediction.png").exists()
    written = {}
    for devices in ("1", "2"):
        run = folder / f"{devices}/version_0"
        images = {name for name, _ in latest_image_scores(run, "val")}
        written[devices] = {"written": matrices(run), "images": images}
    return written | {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_two_ranks_together_see_what_one_process_sees(records):
    for one, first, second in zip(*(records[key]["train"] for key in ("1_0", "2_0", "2_1")), strict=True):
        for stream in ("source", "target"):
            assert one[stream] == first[stream] + second[stream]


def test_ranks_keep_the_same_weights(records):
    assert records["2_0"]["weights"] == records["2_1"]["weights"]
    assert len(records["2_0"]["weights"]) > 500


def test_evaluation_is_shared_out_and_counted_once(records):
    assert records["1_0"]["val"] == ["tiny_3_0", "tiny_3_1", "tiny_3_2"]
    assert records["2_0"]["val"] == ["tiny_3_0", "tiny_3_2"]
    assert records["2_1"]["val"] == ["tiny_3_1"]
    confusions = {key: torch.tensor(records[key]["confusion"]) for key in ("1_0", "2_0", "2_1")}
    for devices in ("1", "2"):
        assert records[devices]["images"] == {"tiny_3_0", "tiny_3_1", "tiny_3_2"}
        whole, within, beyond = (records[devices]["written"][scope] for scope in SCOPES)
        assert whole.tolist() == records[f"{devices}_0"]["confusion"]
        assert torch.equal(within + beyond, whole)
    for scope in SCOPES:
        one, two = (records[devices]["written"][scope].sum(1) for devices in ("1", "2"))
        assert one.sum() > 0
        assert torch.equal(one, two)
    assert torch.equal(confusions["2_0"], confusions["2_1"])
    assert torch.equal(confusions["2_0"].sum(1), confusions["1_0"].sum(1))
