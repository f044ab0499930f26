"""The memory format that convolutions in 16 bits run fastest in on a GPU."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class ChannelsLast(Callback):
    """Keeps the weights of all networks with their channels last in memory, which convolutions then follow.

    With `--trainer.precision bf16-mixed` a step of DACS with ResNet-101 took 80 ms instead of 88 on an NVIDIA H200
    (`benchmarks/full_size_step.py`). Results differ by rounding alone, and checkpoints fit runs without it and back.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Brings the weights into the format, before they are moved to the device and checkpoints are read."""
        pl_module.to(memory_format=torch.channels_last)
