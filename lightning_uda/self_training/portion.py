"""What grows from round to round: the portion of pixels that is labelled and the share of source images (CBST)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from decimal import Decimal, InvalidOperation

import numpy as np
import numpy.typing as npt

from lightning_uda.ranges import POSITIVE, ranged

_DECIMALS = 6


def _exact(name: str, value: str | float) -> Decimal:
    try:
        decimal = Decimal(str(value))
        if not decimal.is_finite() or decimal != round(decimal, _DECIMALS):
            raise InvalidOperation
    except InvalidOperation:
        raise ValueError(
            f"PortionPolicy: found {name}={value!r}; expected a decimal number with at most {_DECIMALS} decimals."
        ) from None
    return decimal


class PortionPolicy:
    """p_r = min(initial + r * step, maximum) in exact decimals (CBST, section 4.2).

    Exact, because a rank floor(p * N) loses one where p has gathered rounding errors. The published program tests
    "p < maximum" before it adds, and so goes past the maximum by a step; this one doesn't.

    Args:
        initial: Portion of round 0, in [0, 1]; a text such as "0.20" or a number. A round of portion 0 labels no pixel:
            the control of self-training, whose target images still pass through the network.
        step: What every round adds; 0 keeps the portion.
        maximum: The portion is never larger.

    Raises:
        ValueError: If one of them is no number, has more than six decimals (ranks count in millionths), or they don't
            satisfy 0 <= initial <= maximum <= 1 and step >= 0.
    """

    def __init__(
        self, initial: str | float = "0.20", step: str | float = "0.05", maximum: str | float = "0.50"
    ) -> None:
        self.initial = _exact("initial", initial)
        self.step = _exact("step", step)
        self.maximum = _exact("maximum", maximum)
        if not 0 <= self.initial <= self.maximum <= 1 or not 0 <= self.step <= 1:
            raise ValueError(
                f"PortionPolicy: found initial={self.initial}, step={self.step} and maximum={self.maximum}; expected "
                "0 <= initial <= maximum <= 1 and a step from 0 to 1, e.g. 0.20, 0.05 and 0.50."
            )

    def portion(self, round_number: int) -> Decimal:
        """The portion of a round, counted from 0."""
        return min(self.initial + round_number * self.step, self.maximum)

    def count(self, round_number: int, total: int) -> int:
        """floor(p_r * total)."""
        return int(self.portion(round_number) * total)


class SourceSubset(ABC):
    """Which source images a round trains on, beside all target images.

    Args:
        nested: Whether a round's images contain those of the rounds before, as in the MXNet program; otherwise every
            round draws afresh, as in the PyTorch program.
    """

    def __init__(self, nested: bool = True) -> None:
        self.nested = nested

    @abstractmethod
    def count(self, round_number: int, num_source: int, num_target: int) -> int:
        """Number of source images of a round, 1..num_source."""

    def draw(self, round_number: int, num_source: int, num_target: int, seed: int) -> npt.NDArray[np.int64]:
        """Indices of a round's source images, without repetition.

        Args:
            round_number: Counted from 0.
            num_source: Images in the source set.
            num_target: Images in the target set.
            seed: Key of the draw.

        Returns:
            int64 (count,), in random order.
        """
        generator = np.random.default_rng((seed, 0 if self.nested else round_number))
        return generator.permutation(num_source)[: self.count(round_number, num_source, num_target)]


class SourcePortion(SourceSubset):
    """A growing share of the source set (the published programs; the paper uses all of it).

    Args:
        portion: Share of the source images; 0.03 growing by 0.0025 to 0.06 for GTA5, from 0.02 on for SYNTHIA.
        nested: See `SourceSubset`.
    """

    def __init__(
        self, portion: PortionPolicy = PortionPolicy(initial="0.03", step="0.0025", maximum="0.06"), nested: bool = True
    ) -> None:
        super().__init__(nested)
        self.portion = portion

    def count(self, round_number: int, num_source: int, num_target: int) -> int:
        """floor(portion * num_source), at least one image."""
        return max(1, self.portion.count(round_number, num_source))


class SourcePerTarget(SourceSubset):
    """As many source images as keep their ratio to the target images.

    The published programs mix 748 images of GTA5 with 505 of Cityscapes; with all 2,975 a ratio of 1.5 keeps the mix.

    Args:
        ratio: Source images per target image, more than 0; all source images at most are taken.
        nested: See `SourceSubset`; as the number doesn't grow, nested means the same images in every round.

    Raises:
        ValueError: If the ratio isn't positive.
    """

    @ranged(ratio=POSITIVE)
    def __init__(self, ratio: float = 1.5, nested: bool = True) -> None:
        super().__init__(nested)
        self.ratio = ratio

    def count(self, round_number: int, num_source: int, num_target: int) -> int:
        """floor(ratio * num_target), at least one image and at most all."""
        return min(num_source, max(1, int(self.ratio * num_target)))


def learning_rate_factor(round_number: int, per_round: float = 2**-0.5) -> float:
    """What the base learning rate is multiplied by in a round, counted from 0.

    Args:
        round_number: 0 for the first round.
        per_round: Factor between rounds: 1 / sqrt(2) (ResNet-38, MXNet program) or 1 (DeepLab, PyTorch program).
    """
    return float(per_round**round_number)
