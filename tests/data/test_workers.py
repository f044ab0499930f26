"""A loader whose process dies says so where a batch is asked for, and says what to do."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from torch.utils.data import Dataset, IterableDataset

from lightning_uda.data.workers import WorkerError, WorkerLoader
from tests.fixtures.faults import await_death, kill_worker

ADVICE = (
    r"as a rule because memory ran out\. Lower data\.num_workers \(2 now, 0 makes none\) or data\.batch_size, or give "
    r"the machine or its container more memory"
)


class Numbers(Dataset):
    def __init__(self, wait=0):
        self.wait = wait

    def __len__(self):
        return 20

    def __getitem__(self, index):
        time.sleep(self.wait)
        return index


def test_a_death_is_told_where_a_batch_is_asked_for_and_nowhere_else(tmp_path):
    batches = iter(WorkerLoader(Numbers(), batch_size=None, num_workers=2))
    assert next(batches) == 0
    await_death(worker := kill_worker())
    (tmp_path / "step").write_text("a step, in which nothing is raised")
    with pytest.raises(
        WorkerError, match=rf"^A process of the data loader \(pid {worker}\) was killed \(Killed\), {ADVICE}"
    ):
        next(batches)


def test_a_death_that_the_system_tells_nobody_is_found_too(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    batches = iter(WorkerLoader(Numbers(), batch_size=None, num_workers=2))
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    next(batches)
    await_death(worker := kill_worker())
    with pytest.raises(WorkerError, match=rf"\(pid {worker}\) was killed \(Killed\), {ADVICE}"):
        list(batches)
    signal.signal(signal.SIGCHLD, before)


def test_a_death_while_a_batch_is_waited_for_is_told_at_once():
    batches = iter(WorkerLoader(Numbers(wait=60), batch_size=None, num_workers=1))
    threading.Timer(0.3, kill_worker).start()
    began = time.monotonic()
    with pytest.raises(WorkerError, match="was killed"):
        next(batches)
    assert time.monotonic() - began < 4  # torch's loader looks every 5 seconds


def test_children_that_are_no_workers_may_end():
    batches = iter(WorkerLoader(Numbers(), batch_size=None, num_workers=1))
    os.waitpid(os.spawnlp(os.P_NOWAIT, "true", "true"), 0)
    assert list(batches) == list(range(20))


class Failing(IterableDataset):
    def __init__(self, error):
        self.error = error

    def __iter__(self):
        raise self.error
        yield


def test_memory_that_a_worker_lacks_is_named_too():
    with pytest.raises(WorkerError, match=rf"^A process of the data loader found no memory for a batch, {ADVICE}"):
        list(WorkerLoader(Failing(MemoryError()), batch_size=None, num_workers=2))


def test_other_errors_of_a_worker_stay_as_they_are():
    with pytest.raises(RuntimeError, match="of its own") as error:
        list(WorkerLoader(Failing(RuntimeError("of its own")), batch_size=None, num_workers=1))
    assert not isinstance(error.value, WorkerError)


CELL = """
import multiprocessing, sys
import numpy as np
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.datasets import MiniCity
class Night(MiniCity):
    def load_image(self, index):
        return super().load_image(index) // 4
data = UDADataModule("cityscapes", val=Night("val", "target", 2, (16, 32)), num_workers=1)
for method in sys.argv[1:]:
    multiprocessing.set_start_method(method, force=True)
    try:
        print(method, "gave", len(list(data.val_dataloader())))
    except Exception as error:
        print(method, type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_dataset_of_a_cell_is_refused_where_processes_start_empty():
    # `python -c`, as a notebook, has a `__main__` that is no file
    command = [sys.executable, "-c", CELL, "spawn", "forkserver", "fork"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout.splitlines()
    for line, method in zip(lines, ("spawn", "forkserver"), strict=False):
        assert line == (
            f"{method} WorkerError Found Night, defined in a notebook or console, but processes of the data loader "
            f"start by '{method}' here and can't import it from there. Set data.num_workers to 0, or move Night into a "
            "file (my_data.py) and import it."
        )
    assert lines[2:] == ["fork gave 2"]


@pytest.mark.slow
def test_a_dataset_of_a_file_is_taken_where_processes_start_empty():
    assert list(WorkerLoader(Numbers(), batch_size=None, num_workers=1, multiprocessing_context="spawn")) == list(
        range(20)
    )
