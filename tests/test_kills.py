"""Runs that are killed at any moment, and long ones: `make test-slow`."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_uda.__main__ import main
from lightning_uda.checkpoints import read_checkpoint
from lightning_uda.files import versions
from tests.fixtures.kills import killed
from tests.fixtures.processes import run
from tests.test_resuming import config_of, tables

KILLS = 20
RESIZED = ["--data.source_transform", "TrainTransform", "--data.source_transform.resize", "[20,28]"]
RESIZED += ["--data.source_transform.crop", "[16,16]"]  # resized images are cached


def command_of(folder, method):
    return ["fit", "--config", config_of(folder, method), *([] if method == "SelfTraining" else RESIZED)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["DACS", "DSP", "EHTDI", "T2SDA", "SelfTraining"])
def test_a_run_goes_on_bit_for_bit_wherever_it_is_killed(method, tmp_path):
    whole, changes = killed(command_of(tmp_path / "whole", method), tmp_path / "whole", None, 0)
    assert whole.returncode == 0, whole.stderr
    (expected,) = versions(tmp_path / "whole" / method)
    last, wanted = read_checkpoint(expected / "checkpoints/last.ckpt"), tables(expected)
    draw = random.Random(method)
    first = next(number for number, (_, path) in enumerate(changes, start=1) if "/checkpoints" in path)
    moments = draw.sample(range(2, first), KILLS // 4) + draw.sample(range(first, len(changes) + 1), KILLS * 3 // 4)
    resumed = 0
    for number, at in enumerate(moments):
        folder = tmp_path / f"killed_{number}"
        command = command_of(folder, method)
        process, done = killed(command, folder, at, draw.choice([0, draw.uniform(0, 0.05)]))
        where = f"kill {number}, at change {at}: {done[-1]}"
        assert process.returncode in (-9, 0), where  # 0: it ended before
        again = run(main, [*command, "--resume"])
        if "found no " in again.stderr and "to go on from" in again.stderr:  # killed before its first checkpoint
            assert not list(folder.rglob("*.ckpt")), where
            again = run(main, command)
        else:
            resumed += 1
        assert again.returncode == 0, f"{where}\n{again.stderr}"
        folder_of_run = versions(folder / method)[-1]
        assert are_equal(read_checkpoint(folder_of_run / "checkpoints/last.ckpt"), last), where
        assert tables(folder_of_run) == wanted, where
    assert resumed >= KILLS // 2
    print(f"{method}: {KILLS} kills survived, {resumed} of them after the first checkpoint")


def are_equal(one, other):
    """Whether checkpoints have the same weights, bit for bit, and the same state of the optimiser."""
    return (
        one["global_step"] == other["global_step"]
        and one["state_dict"].keys() == other["state_dict"].keys()
        and all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
        and str(one["optimizer_states"]) == str(other["optimizer_states"])
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads what Linux says of a process")
def test_a_long_run_holds_no_more_at_its_end_than_at_its_beginning(tmp_path):
    config = config_of(tmp_path, "DSP", val_check_interval=100, log_every_n_steps=50)
    options = ["--trainer.max_steps", "2000", "--data.num_workers", "2"]
    options += ["--trainer.callbacks+=tests.fixtures.soak.Holdings", f"--trainer.callbacks.path={tmp_path}/held.csv"]
    ended = run(main, ["fit", "--config", config, *options], timeout=1500)
    assert ended.returncode == 0, ended.stderr
    steps, resident, descriptors, processes, shared = np.loadtxt(tmp_path / "held.csv", delimiter=",").T
    assert list(steps) == list(range(100, 2001, 100))
    slope = np.polyfit(steps[5:], resident[5:], 1)[0] * 100
    print(f"memory grows by {slope:.3f} MB in 100 steps, {resident[5]:.0f} MB to {resident[-1]:.0f} MB")
    assert slope < 1
    assert max(descriptors[10:]) <= max(descriptors[:10])
    assert np.median(shared[10:]) <= max(shared[:10])
    assert max(processes[10:]) <= max(processes[:10])
