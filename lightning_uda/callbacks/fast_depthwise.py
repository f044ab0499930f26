"""Depthwise convolutions that train faster on a CPU."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_uda.networks.depthwise import hasten_depthwise


class FastDepthwise(Callback):
    """Computes the gradients of depthwise convolutions by forward convolutions where that is faster: on a CPU.

    It is for networks with large or dilated depthwise kernels (EfficientNets, MobileNets, ConvNeXt): PyTorch's own
    gradients take most of their step on a CPU (`benchmarks/depthwise.py`). Results differ by rounding alone,
    checkpoints fit runs without it and back, and on other devices and in 16 bits it changes nothing.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the convolutions of all networks of the module."""
        hasten_depthwise(pl_module)
