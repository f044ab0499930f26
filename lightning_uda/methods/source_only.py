"""Source-only training: the lower bound of every table, and, on target labels, the oracle."""

from __future__ import annotations

from lightning_uda.methods.base import UDAModule
from lightning_uda.step import Labels, Step


class SourceOnly(UDAModule):
    """Supervised training on the source images alone; L_s of DACS.

    The oracle, the upper bound, is this method with the labelled target training set as `data.source`: see
    `configs/experiment/*/oracle.yaml`.
    """

    views = ("source",)

    def algorithm(self, step: Step) -> None:
        """Cross-entropy of the source batch, mean over its valid pixels."""
        source = step.batch["source"]
        step.learn("source", source["image"], Labels(source["mask"]))
