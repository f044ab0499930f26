import os
import signal
import tempfile
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["LIGHTNING_UDA_CACHE"] = tempfile.mkdtemp(prefix="lightning_uda_cache_")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import gc

import numpy as np
import pytest
import torch

import lightning_uda.cli  # noqa: F401  most of what the tests import

torch.set_num_threads(1)
gc.freeze()  # modules stay; looking for garbage among them takes a tenth of the time

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job; runs that tests start inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """Arrays of one reference file, as tensors."""

    def __init__(self, name: str):
        self.arrays = np.load(GOLDEN / f"{name}.npz")

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def numpy(self, key: str) -> np.ndarray:
        return self.arrays[key]


@pytest.fixture
def golden():
    return Golden


@pytest.fixture
def wandb_anew():
    """W&B as in a new process: it reads environment variables once, and a test before may have had others."""
    import wandb  # heavy, and two tests need it

    wandb.teardown()
    yield
    wandb.teardown()


def pytest_unconfigure():
    gc.unfreeze()  # or libraries complain of what is left
