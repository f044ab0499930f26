"""AdaBN (Li et al., 2016, arXiv:1603.04779): source-only training, evaluated with target BatchNorm statistics."""

from __future__ import annotations

from lightning.pytorch import Callback

from lightning_uda.callbacks.adapt_batch_norm import AdaptBatchNorm
from lightning_uda.methods.source_only import SourceOnly


class AdaBN(SourceOnly):
    """`SourceOnly` that brings the callback `AdaptBatchNorm`: the cheap baseline that every method must beat.

    Its checkpoints hold the source's statistics and are those of `SourceOnly`, so `validate` with this method on a
    source-only checkpoint gives AdaBN's score without training.
    """

    def configure_callbacks(self) -> list[Callback]:
        """An `AdaptBatchNorm`, unless the trainer has one already."""
        return [] if self.has_callback(AdaptBatchNorm) else [AdaptBatchNorm()]
