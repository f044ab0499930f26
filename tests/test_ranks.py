"""Means over all processes' images are those of one process that has them all."""

import pytest
import torch

from lightning_uda.ranks import divisor, global_means, mean_over_ranks
from tests.fixtures.choices import few_of
from tests.fixtures.processes import run, run_ranks
from tests.fixtures.two_ranks_means import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("means")
    assert run(train, folder, 1).returncode == 0
    ended = run_ranks(2, train, folder, 2)
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


def distance(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one if one[name].is_floating_point())


@pytest.mark.parametrize("method", few_of(["SourceOnly", "MeanTeacher"], "MeanTeacher"))
def test_two_processes_with_global_means_train_as_one(trained, method):
    one = trained[f"{method}_True_1"]
    assert distance(one, trained[f"{method}_False_1"]) == 0
    assert distance(one, trained[f"{method}_True_2"]) < 1e-6
    assert distance(one, trained[f"{method}_False_2"]) > 1e-4


def test_without_processes_a_count_is_the_divisor():
    with global_means(True):
        assert mean_over_ranks(torch.tensor(3)) == 3
        assert divisor(torch.tensor(3)) == 3
        assert 0 < divisor(torch.tensor(0)) < 1
