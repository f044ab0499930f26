"""AdaBN: BatchNorm statistics of the target domain at test time (Li et al., 2016, arXiv:1603.04779)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.ranges import BATCH, COUNT, ranged
from lightning_uda.step import to_float

When = Literal["evaluation", "start"]


class AdaptBatchNorm(Callback):
    """Takes BatchNorm statistics that are re-estimated on unlabelled images of `data.target`.

    Before each validation, test or prediction the evaluated network's running statistics are replaced by the mean of
    the batch statistics of target images, in the geometry of evaluation. They are restored afterwards, so neither
    training nor checkpoints change. With source-only training this is the cheap baseline that every method must beat.
    It works on any checkpoint: run `validate` with this callback.

    With `when: start` the student's statistics are replaced once, before training, and stay; evaluation takes them as
    they are. A network whose `batch_norm` is "frozen_statistics" or "eval" then keeps those of the target domain, so
    that a further gain of self-training isn't due to them. A run that resumes has them from its checkpoint.

    Args:
        when: "evaluation" or "start", as above.
        num_images: Target images to estimate from, evenly spread over the set; all if there are fewer.
        batch_size: Images in a batch; images of different sizes go into separate batches.

    Raises:
        ValueError: If a number is below 1, or `when` is none of these.
    """

    @ranged(num_images=COUNT, batch_size=BATCH)
    def __init__(self, num_images: int = 256, batch_size: int = 4, when: When = "evaluation") -> None:
        if when not in get_args(When):
            raise ValueError(f"AdaptBatchNorm: found when={when!r}; expected one of {get_args(When)}.")
        self.num_images = num_images
        self.batch_size = batch_size
        self.when = when
        self._source_statistics: list[dict[str, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the network has BatchNorm, and that there are target images.

        Raises:
            ValueError: If it has none.
            DatasetError: If there are no target images.
        """
        if self.when == "start" and stage != "fit":
            return
        if not _batch_norms(self._network(pl_module)):
            raise ValueError(
                f"AdaptBatchNorm: {type(pl_module.student).__name__} has no BatchNorm layer whose statistics could be "
                "re-estimated. Remove the callback from trainer.callbacks."
            )
        self._loader(trainer.datamodule)  # type: ignore[attr-defined]

    def _loader(self, data: UDADataModule) -> Any:
        return data.target_dataloader(self.num_images, self.batch_size)

    def _network(self, pl_module: LightningModule) -> nn.Module:
        """Whose statistics are replaced."""
        network: nn.Module = pl_module.student if self.when == "start" else pl_module.evaluated_network()  # type: ignore[operator, assignment]
        return network

    @torch.no_grad()
    def _estimate(self, data: UDADataModule, network: nn.Module, device: torch.device) -> None:
        """Replaces the statistics of a network in eval mode."""
        layers = _batch_norms(network)
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        for batches in self._loader(data):
            for batch in batches:
                network(to_float(batch["image"].to(device)))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()

    def adapt(self, pl_module: LightningModule, data: UDADataModule) -> None:
        """Takes target statistics for an evaluation, if that is when they are wanted; the network is in eval mode."""
        if self.when == "evaluation":
            network = self._network(pl_module)
            self._source_statistics = [_statistics(layer) for layer in _batch_norms(network)]
            self._estimate(data, network, pl_module.device)

    @torch.no_grad()
    def _restore(self, pl_module: LightningModule) -> None:
        if self.when == "evaluation":
            for layer, statistics in zip(_batch_norms(self._network(pl_module)), self._source_statistics, strict=True):
                for name, buffer in layer.named_buffers():
                    buffer.copy_(statistics[name])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With `when: start`, takes target statistics for good, unless a run resumes."""
        if self.when == "start" and trainer.ckpt_path is None:
            network = self._network(pl_module)
            training = network.training
            self._estimate(trainer.datamodule, network.eval(), pl_module.device)  # type: ignore[attr-defined]
            network.train(training)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes target statistics."""
        self.adapt(pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the statistics back."""
        self._restore(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes target statistics."""
        self.adapt(pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the statistics back."""
        self._restore(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes target statistics."""
        self.adapt(pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the statistics back."""
        self._restore(pl_module)


def _statistics(layer: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def _batch_norms(network: nn.Module) -> list[Any]:
    """BatchNorm layers with running statistics."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [layer for layer in network.modules() if isinstance(layer, kinds) and layer.track_running_stats]
