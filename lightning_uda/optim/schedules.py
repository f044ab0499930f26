"""Learning-rate schedules over optimiser steps."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning_uda.ranges import NOT_NEGATIVE, SHARE, STEPS, ranged


class Schedule(ABC):
    """A factor on every group's learning rate as a function of the optimiser step."""

    @abstractmethod
    def factor(self, step: int, max_steps: int) -> float:
        """Factor in [0, 1] used in step `step` (counted from 0) of `max_steps`."""


class Constant(Schedule):
    """The base rate throughout."""

    def factor(self, step: int, max_steps: int) -> float:
        """Always 1."""
        return 1.0


class Poly(Schedule):
    """Polynomial decay with an optional linear warm-up: lr = lr_0 (1 - step / max_steps) ** power.

    Args:
        power: Exponent; 0.9 in DACS, DSP and EHTDI, 1 in DAFormer.
        warmup_steps: Steps of linear warm-up; 0 for none. The decay is counted from step 0 with and without it.
        warmup_ratio: Factor of the first warm-up step.
    """

    @ranged(power=NOT_NEGATIVE, warmup_steps=STEPS, warmup_ratio=SHARE)
    def __init__(self, power: float = 0.9, warmup_steps: int = 0, warmup_ratio: float = 1e-6) -> None:
        self.power = power
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio

    def factor(self, step: int, max_steps: int) -> float:
        """Decay factor, multiplied by the warm-up factor during warm-up; 0 from `max_steps` on."""
        decay: float = (1 - min(step, max_steps) / max_steps) ** self.power
        if step >= self.warmup_steps:
            return decay
        return decay * (1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio))
