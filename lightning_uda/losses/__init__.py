"""Losses: plain torch functions."""

from lightning_uda.losses.cross_entropy import cross_entropy, upsample, weighted_cross_entropy

__all__ = ["cross_entropy", "upsample", "weighted_cross_entropy"]
