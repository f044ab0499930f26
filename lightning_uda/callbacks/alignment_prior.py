"""The class distribution that distribution alignment steers towards."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.statistics import class_statistics


class AlignmentPrior(Callback):
    """Gives `pl_module.alignment` its prior: the share of each class in the labelled pixels of a training set.

    `DistributionAlignment.prior_of` says which set: source or target.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Counts, or reads the counts of an earlier run.

        Raises:
            ValueError: If the method has no distribution alignment.
            DatasetError: If the set has no labels.
        """
        if stage != "fit":
            return
        alignment = getattr(pl_module, "alignment", None)
        if alignment is None:
            raise ValueError(
                f"AlignmentPrior needs a method with `alignment`, found {type(pl_module).__name__} without. Set "
                "model.init_args.alignment to DistributionAlignment, or remove the callback from trainer.callbacks."
            )
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, UDADataModule) or getattr(data, alignment.prior_of) is None:
            raise ValueError(
                f"AlignmentPrior counts the labels of data.{alignment.prior_of}, but found no UDADataModule with that "
                "set. Give the trainer one, or set model.init_args.alignment to null."
            )
        statistics = class_statistics(getattr(data, alignment.prior_of), data.label_space, data.cache_dir)
        alignment.prior.copy_(torch.from_numpy(statistics.pixel_frequency))
