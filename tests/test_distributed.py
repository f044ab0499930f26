"""Two processes, on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_uda.metrics import read_confusion

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for devices in ("1", "2"):
        command = [sys.executable, "-m", "tests.fixtures.two_ranks", str(folder), devices]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    assert (folder / "2/version_0/panels/step_000003/val_1_prediction.png").exists()
    matrices = {devices: folder / f"{devices}/version_0/confusions/val_step_000003.csv" for devices in ("1", "2")}
    assert all(list(path.parent.iterdir()) == [path] for path in matrices.values())
    written = {devices: {"written": read_confusion(path)[0].tolist()} for devices, path in matrices.items()}
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
    assert records["1"]["written"] == records["1_0"]["confusion"]
    assert records["2"]["written"] == records["2_0"]["confusion"]
    assert torch.equal(confusions["2_0"], confusions["2_1"])
    assert torch.equal(confusions["2_0"].sum(1), confusions["1_0"].sum(1))
