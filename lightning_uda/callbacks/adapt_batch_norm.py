"""AdaBN: BatchNorm statistics of the target domain at test time (Li et al., 2016, arXiv:1603.04779)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_uda.step import to_float


class AdaptBatchNorm(Callback):
    """Evaluates with BatchNorm statistics that are re-estimated on unlabelled images of `data.target`.

    Before each validation, test or prediction the evaluated network's running statistics are replaced by the mean of
    the batch statistics of target images, in the geometry of evaluation. They are restored afterwards, so neither
    training nor checkpoints change. With source-only training this is the cheap baseline that every method must beat.
    It works on any checkpoint: run `validate` with this callback.

    Args:
        num_images: Target images to estimate from, evenly spread over the set; all if there are fewer.
        batch_size: Images in a batch; images of different sizes go into separate batches.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(self, num_images: int = 256, batch_size: int = 4) -> None:
        if min(num_images, batch_size) < 1:
            raise ValueError(f"AdaptBatchNorm: found num_images={num_images}, batch_size={batch_size}; expected >= 1.")
        self.num_images = num_images
        self.batch_size = batch_size
        self._source_statistics: list[dict[str, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the network has BatchNorm, and that there are target images.

        Raises:
            ValueError: If it has none.
            DatasetError: If there are no target images.
        """
        if not _batch_norms(pl_module):
            raise ValueError(
                f"AdaptBatchNorm: {type(pl_module.student).__name__} has no BatchNorm layer whose statistics could be "
                "re-estimated. Remove the callback from trainer.callbacks."
            )
        self._loader(trainer)

    def _loader(self, trainer: Trainer) -> Any:
        return trainer.datamodule.target_dataloader(self.num_images, self.batch_size)  # type: ignore[attr-defined]

    @torch.no_grad()
    def _adapt(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers, network = _batch_norms(pl_module), pl_module.evaluated_network()  # type: ignore[operator]
        self._source_statistics = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        for batches in self._loader(trainer):
            for batch in batches:
                network(to_float(batch["image"].to(pl_module.device)))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()

    @torch.no_grad()
    def _restore(self, pl_module: LightningModule) -> None:
        for layer, statistics in zip(_batch_norms(pl_module), self._source_statistics, strict=True):
            for name, buffer in layer.named_buffers():
                buffer.copy_(statistics[name])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes target statistics."""
        self._adapt(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the statistics back."""
        self._restore(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes target statistics."""
        self._adapt(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the statistics back."""
        self._restore(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes target statistics."""
        self._adapt(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the statistics back."""
        self._restore(pl_module)


def _batch_norms(pl_module: LightningModule) -> list[Any]:
    """BatchNorm layers with running statistics, of the network that is evaluated."""
    network: nn.Module = pl_module.evaluated_network()  # type: ignore[operator]
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [layer for layer in network.modules() if isinstance(layer, kinds) and layer.track_running_stats]
