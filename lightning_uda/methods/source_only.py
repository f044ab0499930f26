"""Source-only training: the lower bound of every table, and, on target labels, the oracle."""

from __future__ import annotations

from torch import Tensor

from lightning_uda.losses import cross_entropy
from lightning_uda.methods.base import UDAModule, to_float


class SourceOnly(UDAModule):
    """Supervised training on the source images alone; L_s of DACS.

    The oracle, the upper bound, is this method with the labelled target training set as `data.source`: see
    `configs/experiment/*/oracle.yaml`.
    """

    def training_step(self, batch: dict[str, dict[str, Tensor]], batch_idx: int) -> Tensor:
        """Cross-entropy of the source batch, mean over its valid pixels."""
        source_image, source_mask = to_float(batch["source"]["image"]), batch["source"]["mask"].long()

        loss = cross_entropy(self.student(source_image), source_mask)

        self.log_step({"loss_source": loss})
        return loss
