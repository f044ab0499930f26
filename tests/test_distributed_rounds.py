"""Self-training in rounds on two processes, on the CPU."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.processes import run_ranks
from tests.fixtures.two_ranks_rounds import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    train(folder, devices=1)
    ended = run_ranks(2, train, folder, 2)
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr
    return folder


@pytest.mark.parametrize("number", [1, 2])
def test_thresholds_and_labels_of_two_ranks_are_those_of_one_process(runs, number):
    one, two = (runs / devices / f"version_0/rounds/round_{number}" for devices in ("1", "2"))
    assert json.loads((one / "round.json").read_text()) == json.loads((two / "round.json").read_text())
    names = sorted(path.name for path in one.glob("*.png"))
    assert len(names) == 5
    assert sorted(path.name for path in two.iterdir()) == [*["round.json"], *names]
    for name in names:
        np.testing.assert_array_equal(np.asarray(Image.open(one / name)), np.asarray(Image.open(two / name)))


def test_two_ranks_together_see_the_batches_of_one_process(runs):
    records = {path.stem: json.loads(path.read_text()) for path in runs.glob("*.json")}
    batches = [records[key]["train"] for key in ("1_0", "2_0", "2_1")]
    assert len(batches[0]) == 6  # two rounds of 5 target and 7 source images, by 4
    for one, first, second in zip(*batches, strict=True):
        assert one["union"] == first["union"] + second["union"]
    assert records["2_0"]["weights"] == records["2_1"]["weights"]
