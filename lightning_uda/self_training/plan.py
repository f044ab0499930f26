"""Which optimiser steps belong to which round of self-training."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundPlan:
    """Which optimiser steps belong to which round; rounds count from 0.

    Attributes:
        first_steps: First step of each round and, as the last entry, the number of all steps.
        images_per_step: Images in an optimiser step, over all processes and accumulated batches.
    """

    first_steps: tuple[int, ...]
    images_per_step: int

    @classmethod
    def of(cls, union_sizes: Sequence[int], epochs_per_round: int, images_per_step: int) -> RoundPlan:
        """Plans rounds in which every image is shown `epochs_per_round` times.

        The last step of a round is filled up from a further pass over its images.

        Args:
            union_sizes: Number of source and target images of each round.
            epochs_per_round: Passes over them.
            images_per_step: As in the attribute.
        """
        steps = (math.ceil(size * epochs_per_round / images_per_step) for size in union_sizes)
        return cls(tuple(accumulate(steps, initial=0)), images_per_step)

    @property
    def num_rounds(self) -> int:
        """Number of rounds."""
        return len(self.first_steps) - 1

    @property
    def num_steps(self) -> int:
        """Number of steps of all rounds."""
        return self.first_steps[-1]

    def round_of(self, step: int) -> int:
        """The round of a step; that of the last one for steps after it."""
        return min(bisect_right(self.first_steps, step), self.num_rounds) - 1

    def positions(self, round_number: int) -> tuple[int, int]:
        """Stream positions of a round: the first, and the one after the last."""
        first, end = self.first_steps[round_number : round_number + 2]
        return first * self.images_per_step, end * self.images_per_step

    def require_same(self, first_steps: Sequence[int], images_per_step: int | None) -> None:
        """Compares the plan with that of a checkpoint; the run may have more rounds or fewer.

        Args:
            first_steps: That of the checkpoint.
            images_per_step: Likewise; `None` if the checkpoint doesn't say it.

        Raises:
            ValueError: If a round that both have begins or ends at another step.
        """
        if all(a == b for a, b in zip(first_steps, self.first_steps, strict=False)):
            return
        found = (
            f"The checkpoint's rounds begin and end at the steps {list(first_steps)}, those of this run at "
            f"{list(self.first_steps)}; expected the same, as a round can't change halfway. "
        )
        if images_per_step not in (None, self.images_per_step):
            raise ValueError(
                f"{found}Its steps had {images_per_step} images, those of this run have {self.images_per_step}: choose "
                "data.batch_size and trainer.accumulate_grad_batches so that their product with the number of "
                f"processes is {images_per_step} again."
            )
        raise ValueError(f"{found}Resume with the same data, epochs_per_round and source_images.")

    def check_last_step(self, max_steps: int) -> None:
        """Compares the plan with the number of steps that the trainer was told to make, and says if that is less.

        Raises:
            ValueError: If it is more.
        """
        if max_steps > self.num_steps:
            raise ValueError(
                f"trainer.max_steps: found {max_steps}, but the {self.num_rounds} rounds end after {self.num_steps} "
                "steps. Leave it out, or set it to that number or less."
            )
        if max_steps < self.num_steps:
            _log.warning(
                "trainer.max_steps is %d: training ends in round %d of %d, whose last step is %d",
                max_steps,
                self.round_of(max_steps - 1) + 1,
                self.num_rounds,
                self.num_steps,
            )
