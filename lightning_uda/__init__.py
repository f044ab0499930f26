"""Unsupervised domain adaptive semantic segmentation on PyTorch Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_uda.loading import Run

__version__ = "0.1.0"


def load(folder: str | Path, checkpoint: str | Path | None = None, *, weights: bool = True, data: bool = True) -> Run:
    """Loads a run: its method with trained weights, its data module and its config.

    Paths in the config count from the working directory, as they did in training.

    Args:
        folder: Of the run, `runs/NAME`, which stands for its latest version that trained; or of a version of it.
        checkpoint: Whose weights are taken, by its path or its name in the run's `checkpoints`; `None`: the whole one
            of the highest step.
        weights: Whether weights are loaded; else the network is as it was when training began.
        data: Whether the datasets are opened; else the data module has none, and the data needn't be there.

    Returns:
        `method` (in eval mode, on the CPU), `data` and `config` (a dictionary), in this order.

    Raises:
        CheckpointError: If there is no whole checkpoint, or the one that is named is damaged.
        DatasetError: If a dataset of the config isn't there.
        FileNotFoundError: If there is no such run or checkpoint.
        ValueError: If the config can't be read, or the checkpoint doesn't fit it.
    """
    from lightning_uda.loading import load_run  # brings torch and Lightning, which the command line's help does without

    return load_run(folder, checkpoint, weights=weights, data=data)
