"""How classes lie in feature space, and how far two domains agree on it (T2S-DA).

All take pixels as rows, batch by batch, on the device where they are, and loop over neither classes nor pixels.
Sums are float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.ranges import COUNT, SEED, ranged

SMALLEST_DENOMINATOR = 1e-6
"""Pixels whose denominator in the pixel-wise discrimination distance is nearer to 0 than this are left out of it."""


class ClassCenters:
    """The mean feature of each class, of all pixels that it is shown.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._sums: Tensor | None = None
        self._counts = torch.zeros(num_classes + 1, dtype=torch.int64)

    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Adds pixels.

        Args:
            rows: Features, float (P, D).
            labels: Their classes, int64 (P,); 255 is void.
        """
        slots = labels.clamp(max=self.num_classes)
        if self._sums is None:
            self._sums = rows.new_zeros((self.num_classes + 1, rows.shape[1]), dtype=torch.float64)
            self._counts = self._counts.to(rows.device)
        self._sums.index_add_(0, slots, rows.double())
        self._counts.index_add_(0, slots, torch.ones_like(slots))

    @property
    def counts(self) -> Tensor:
        """Pixels of each class, int64 (C,)."""
        return self._counts[:-1]

    def compute(self) -> Tensor:
        """The means, float64 (C, D); NaN for classes without a pixel.

        Raises:
            ValueError: If it was shown no batch.
        """
        if self._sums is None:
            raise ValueError("ClassCenters: found no pixels; expected at least one call of `update`.")
        return self._sums[:-1] / self.counts.unsqueeze(1)


class ClassDistances:
    """Class centre distance (CCD, Eq. 14) and pixel-wise discrimination distance (PDD, Eq. 15); lower is better.

    It is shown the pixels that the centres were made of. Sums and means over "other classes" are over those that have a
    centre.

    Args:
        centers: As `ClassCenters` gives them, float64 (C, D), NaN for absent classes.
    """

    def __init__(self, centers: Tensor) -> None:
        self.centers = centers
        self._own = F.pad(centers, (0, 0, 0, 1))  # void pixels are compared with 0, and not counted
        self._directions = _unit(centers.nan_to_num())
        slots = len(self._own)
        self._counts, self._skipped = centers.new_zeros(slots), centers.new_zeros(slots)
        self._squares, self._ratios = centers.new_zeros(slots), centers.new_zeros(slots)

    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Adds pixels.

        Args:
            rows: Features, float (P, D).
            labels: Their classes, int64 (P,); 255 is void.
        """
        num_classes = len(self.centers)
        slots, rows = labels.clamp(max=num_classes), rows.double()
        cosines = F.pad(_unit(rows) @ self._directions.T, (0, 1))
        own = cosines.gather(1, slots.unsqueeze(1)).squeeze(1)
        others = cosines.scatter(1, slots.unsqueeze(1), 0).sum(dim=1)
        skipped = others.abs() < SMALLEST_DENOMINATOR
        self._counts.index_add_(0, slots, torch.ones_like(own))
        self._skipped.index_add_(0, slots, skipped.double())
        self._squares.index_add_(0, slots, (rows - self._own[slots]).square().sum(dim=1))
        self._ratios.index_add_(0, slots, (own / others).masked_fill(skipped, 0))

    def ccd(self) -> Tensor:
        """Mean over the other classes j of (mean squared distance of i's pixels to their centre) / |mu_i - mu_j|^2.

        Returns:
            float64 (C,), at least 0; NaN for absent classes, and where there is no other class.
        """
        between = torch.cdist(self.centers, self.centers, compute_mode="donot_use_mm_for_euclid_dist").square()
        between = between.fill_diagonal_(torch.nan)
        return self._squares[:-1] / self._counts[:-1] * between.reciprocal().nanmean(dim=1)

    def pdd(self) -> Tensor:
        """One less the mean over i's pixels x of cos(x, mu_i) / (sum over the other classes j of cos(x, mu_j)).

        Returns:
            float64 (C,); NaN for absent classes, and where all pixels are skipped, as they are without another class.
        """
        return 1 - self._ratios[:-1] / (self._counts - self._skipped)[:-1]

    @property
    def skipped(self) -> Tensor:
        """Pixels of each class that PDD leaves out, as their denominator is within 1e-6 of 0, int64 (C,)."""
        return self._skipped[:-1].long()


def center_similarity(source: Tensor, target: Tensor) -> Tensor:
    """Class-wise similarity of two domains: the cosine of their centres of each class (Fig. 2).

    Args:
        source: Centres as `ClassCenters` gives them, float64 (C, D).
        target: Those of the other domain.

    Returns:
        float64 (C,) in [-1, 1]; NaN for classes that are absent in either.
    """
    return (_unit(source) * _unit(target)).sum(dim=1)


class PixelSample:
    """Some pixels of each class, drawn from all that it is shown, each set of that size with the same probability.

    How pixels are shared out to batches changes nothing.

    Args:
        num_classes: C.
        per_class: Pixels of each class; all of a class that has fewer.
        seed: Of the draw.
    """

    @ranged(per_class=COUNT, seed=SEED)
    def __init__(self, num_classes: int, per_class: int = 256, seed: int = 0) -> None:
        self.num_classes = num_classes
        self.per_class = per_class
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Considers pixels: each gets a random number, and a class keeps those with the smallest.

        Args:
            rows: Features, float (P, D).
            labels: Their classes, int64 (P,); 255 is void.
        """
        numbers = torch.rand(len(rows), generator=self._generator, dtype=torch.float64).to(rows.device)
        if self._kept is not None:
            before = zip(self._kept, (rows, labels, numbers), strict=True)
            rows, labels, numbers = (torch.cat(pair) for pair in before)
        slots = labels.clamp(max=self.num_classes)
        order = numbers.argsort()
        order = order[slots[order].argsort(stable=True)]
        counts = slots.bincount(minlength=self.num_classes + 1)
        rank = torch.arange(len(order), device=rows.device) - (counts.cumsum(0) - counts)[slots[order]]
        kept = order[(rank < self.per_class) & (slots[order] < self.num_classes)]
        self._kept = rows[kept], labels[kept], numbers[kept]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Features (S, D) of the pixels that were drawn, by class, and their classes, int64 (S,).

        Raises:
            ValueError: If it was shown no batch.
        """
        if self._kept is None:
            raise ValueError("PixelSample: found no pixels; expected at least one call of `update`.")
        return self._kept[0], self._kept[1]


def _unit(rows: Tensor) -> Tensor:
    """Rows (P, D) of length 1; those of length 0 stay 0."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / lengths.clamp(min=torch.finfo(rows.dtype).tiny)
