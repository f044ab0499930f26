"""BatchNorm over the images of all processes (`--trainer.sync_batchnorm true`)."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy
from torch import nn


class SharedBatchNorm(TorchSyncBatchNorm):
    """Makes each BatchNorm, of students and teachers, a SyncBatchNorm while training lasts.

    PyTorch's own conversion, which is Lightning's, takes layers of timm that normalise and activate
    (`BatchNormAct2d`, in EfficientNet, MobileNet, RegNet) for plain ones, so that their activations are lost. Here
    they are kept. Names in checkpoints stay.
    """

    def __init__(self) -> None:
        self._plain: dict[str, nn.Module] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Converts all BatchNorm layers of a module in place; they keep their parameters, statistics and mode."""
        from timm.layers.norm_act import convert_sync_batchnorm  # brings wandb; few runs need it

        self._plain = {
            name: layer
            for name, layer in model.named_modules(remove_duplicate=False)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        }
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Puts the plain layers back, with what the others have learned."""
        for name, plain in self._plain.items():
            place, _, last = name.rpartition(".")
            layer = model.get_submodule(name)
            plain._parameters, plain._buffers, plain.training = layer._parameters, layer._buffers, layer.training
            setattr(model.get_submodule(place), last, plain)
        return model


def require_shared_batch_norm(trainer: Trainer) -> None:
    """Checks that processes can share the statistics of BatchNorm.

    Raises:
        ValueError: If there are processes, but no GPUs: PyTorch has SyncBatchNorm for these alone.
    """
    if isinstance(trainer.strategy, DDPStrategy) and trainer.strategy.root_device.type == "cpu":
        raise ValueError(
            "trainer.sync_batchnorm: found true, but PyTorch shares the statistics of BatchNorm between processes on "
            "GPUs only, and these are on the CPU. Leave it out, or keep the statistics as they are, with which "
            "processes don't differ: --model.network.batch_norm frozen_statistics."
        )
