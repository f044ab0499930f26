"""A few labelled target images: semi-supervised adaptation with any method."""

from __future__ import annotations

from torch import Tensor

from lightning_uda.ranges import ranged
from lightning_uda.step import Labels, Step, Term, to_float


class Supervised(Term):
    """Cross-entropy with the labels of a further stream, by default of a few labelled target images.

    Each step shows a batch of the stream, whose images come in turn, in the geometry of the target's, however few they
    are (`data.labelled_target`). They may be among the target images too.

    Args:
        of: Name of a labelled stream.
        weight: Factor of the loss.
    """

    @ranged()
    def __init__(self, of: str = "labelled_target", weight: float = 1.0) -> None:
        super().__init__(weight)
        self.of = of
        self.streams = (of,)

    def forward(self, step: Step) -> Tensor:
        """Mean cross-entropy over the labelled pixels, a scalar."""
        batch = step.batch[self.of]
        return step.cost(step.look(self.name, to_float(batch["image"]), Labels(batch["mask"])))
