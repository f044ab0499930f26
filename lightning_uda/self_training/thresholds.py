"""Thresholds exp(-k) of self-training from confidences shown image by image, in constant memory (Algorithms 1 and 2).

Both searches keep one int64 table of counts and nothing else. Counts add up, so the result is the same, bit for bit,
for any order of the images and any number of ranks that share them, as long as no image is shown twice.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor

from lightning_uda.ranges import BINS, COUNT, PIXELS, SHARE, ranged

Scope = Literal["class", "global"]
Reduction = Callable[[Tensor], Tensor]

_CHUNK = 1 << 16  # pixels counted at once: temporaries of half a MB, which a processor keeps in its cache
_NOT_A_CONFIDENCE = 0x7F80  # upper 16 bits of infinity; those of NaN and of negative numbers are larger


def identity(counts: Tensor) -> Tensor:
    """The sum of counts over a single rank."""
    return counts


def rank_of(portion: Decimal, counts: Tensor) -> Tensor:
    """Rank floor(p * N) of the threshold in the descending order of N confidences, in integers.

    Args:
        portion: p in [0, 1], taken to millionths.
        counts: N, int64 of any shape, below 9e12.

    Returns:
        int64 of that shape; 0 where the portion of so few pixels is less than one pixel.

    Raises:
        ValueError: If the portion is not in [0, 1].
    """
    if not 0 <= portion <= 1:
        raise ValueError(f"portion: found {portion}, expected the share of pixels to select, in [0, 1].")
    return counts * round(portion * 1_000_000) // 1_000_000


class ThresholdSearch(ABC):
    """Finds the confidence exp(-k) of which a portion p of the pixels has as much or more, over a whole target set.

    `start`, then `update` with each image, then `end_pass`; as long as that returns true, all images once more.

    Args:
        scope: "class": exp(-k_c), one threshold for the pixels that are predicted as each class (CBST, Algorithm 2).
            "global": one threshold for all (ST, Algorithm 1), repeated for each class.
        min_rank: Least rank where there are that many pixels; 1 lets a class with fewer than 1/p pixels keep its best.
            A portion of 0 selects nothing all the same.
        threshold_cap: Largest threshold; `None` sets no limit, as published.
        conf_stride: Only each such pixel of a class in an image counts, in raster order from the first; 4 in the
            published programs. A batch (N, H, W) is taken image by image.

    Attributes:
        thresholds: float32 (C,), after the last pass; +inf where the rank is 0, so that nothing is selected.
        predicted: int64 (C,), after the first pass: pixels predicted as each class, of all ranks.
        counts: int64 (C,), after the first pass: those of them that count.
        ranks: int64 (C,), after the first pass: how many of them the threshold selects if no other ties with it.
    """

    thresholds: Tensor
    predicted: Tensor
    counts: Tensor
    ranks: Tensor

    @ranged(min_rank=PIXELS, threshold_cap=SHARE, conf_stride=COUNT)
    def __init__(
        self, scope: Scope = "class", min_rank: int = 0, threshold_cap: float | None = None, conf_stride: int = 1
    ) -> None:
        self.scope: Scope = scope
        self.min_rank = min_rank
        self.threshold_cap = threshold_cap
        self.conf_stride = conf_stride

    @abstractmethod
    def start(self, num_classes: int, device: torch.device) -> None:
        """Forgets everything and makes ready for the first pass.

        Args:
            num_classes: C.
            device: Where confidences will be.
        """

    def update(self, confidence: Tensor, classes: Tensor) -> None:
        """Counts the pixels of an image; waits for no device.

        Args:
            confidence: float32 of any shape: the largest score of each pixel.
            classes: uint8, int32 or int64 of that shape: its class, 0..C-1.

        Raises:
            ValueError: If the shapes differ, or the confidence is not float32.
        """
        if confidence.dtype != torch.float32 or confidence.shape != classes.shape:
            raise ValueError(
                f"Found confidences {confidence.dtype} {tuple(confidence.shape)} and classes {tuple(classes.shape)}; "
                "expected float32, as a lower precision makes ties of many pixels (cast the logits before the "
                "softmax), and two equal shapes."
            )
        counted = every_nth_of_class(classes, len(self._table), self.conf_stride) if self.conf_stride > 1 else None
        confidence, classes = confidence.reshape(-1), classes.reshape(-1)
        if counted is not None:
            self._predicted.index_add_(0, classes.to(torch.int32), self._one.expand(len(classes)))
        for start in range(0, len(classes), _CHUNK):
            part = slice(start, start + _CHUNK)
            self._count(confidence[part], classes[part].to(torch.int32), None if counted is None else counted[part])

    @abstractmethod
    def end_pass(self, portion: Decimal, all_reduce: Reduction = identity) -> bool:
        """Takes stock once all images have been shown.

        Args:
            portion: p in [0, 1].
            all_reduce: Sums an int64 tensor over all ranks.

        Returns:
            Whether the same images must be shown again.

        Raises:
            ValueError: If there were confidences that can't be.
        """

    @abstractmethod
    def _count(self, confidence: Tensor, classes: Tensor, counted: Tensor | None) -> None:
        """Counts some pixels: float32 (n,), int32 (n,), and bool (n,) where not all of them count."""

    def _new_table(self, num_classes: int, width: int, device: torch.device) -> None:
        self._table = torch.zeros(num_classes, width, dtype=torch.int64, device=device)
        self._one = torch.ones((), dtype=torch.int64, device=device)
        self._predicted = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def _add(self, columns: Tensor, classes: Tensor, counted: Tensor | None) -> None:
        """Adds pixels to the table: int32 (n,) columns and classes."""
        cells = classes.mul(self._table.shape[1]).add_(columns)
        weights = self._one.expand(len(cells)) if counted is None else counted.to(torch.int64)
        self._table.view(-1).index_add_(0, cells, weights)

    def _accumulate(self, all_reduce: Reduction) -> Tensor:
        """Makes of the table, in place, how many pixels of all ranks lie up to each column: (C, width)."""
        self._table = all_reduce(self._table).cumsum_(dim=1)
        return self._table

    def _rank(self, portion: Decimal, all_reduce: Reduction) -> None:
        """Sets counts and ranks from the accumulated table of the first pass."""
        self.counts = self._table[:, -1].clone()
        self.predicted = self.counts if self.conf_stride == 1 else all_reduce(self._predicted.clone())
        listed = self.counts.sum().expand_as(self.counts) if self.scope == "global" else self.counts
        least = self.min_rank if portion else 0
        self.ranks = rank_of(portion, listed).clamp(min=least).minimum(listed)

    def _column_of_ranks(self) -> tuple[Tensor, Tensor]:
        """Columns (C,) that hold the ranks, which count from the last column, of the largest confidences.

        With them comes the accumulated table that was searched, (C, width): in the global scope each row is that of all
        classes.
        """
        up_to = self._table.sum(dim=0, keepdim=True) if self.scope == "global" else self._table
        ascending = (up_to[:, -1] + 1 - self.ranks).view(len(up_to), -1)
        columns = torch.searchsorted(up_to, ascending).clamp(max=up_to.shape[1] - 1)  # sorted, so halving finds it
        return columns.view(-1), up_to.expand(len(self.ranks), -1)

    def _set_thresholds(self, thresholds: Tensor) -> None:
        capped = thresholds if self.threshold_cap is None else thresholds.clamp(max=self.threshold_cap)
        self.thresholds = torch.where(self.ranks > 0, capped, torch.inf)


class LogitHistogram(ThresholdSearch):
    """One pass over a histogram that is uniform in logit(confidence), with a bin of its own for exactly 1.

    The B bins span [logit(1/32), logit(1 - 2^-24)], or from logit(1/(C+1)) where C > 31; the last is for confidences
    of 1 and more. With the width D of a bin, 20.07/(B-1), the threshold t^ is the lower edge of the bin of the exact
    threshold t: 0 <= t - t^ <= D t (1-t) (1+D) + 2^-24. For 65,536 bins that is 7.7e-5 at t = 0.5, 1.5e-5 at 0.95 and
    3.1e-6 at 0.99; the table of 19 classes takes 10 MB. Edges are float32 numbers that confidences are compared with,
    so the histogram knows how many pixels a threshold selects, and bins don't depend on how a device rounds logarithms.

    Only for softmax scores: those weighted by a spatial prior need `RadixSelect`.

    Args:
        bins: B.
        scope: As in `ThresholdSearch`.
        min_rank: As in `ThresholdSearch`.
        threshold_cap: As in `ThresholdSearch`.
        conf_stride: As in `ThresholdSearch`.

    Attributes:
        selected: int64 (C,): pixels of each class that reach its threshold before `threshold_cap`. At least the rank,
            in the global scope its sum over classes.
    """

    selected: Tensor

    @ranged(bins=BINS)
    def __init__(
        self,
        bins: int = 65536,
        scope: Scope = "class",
        min_rank: int = 0,
        threshold_cap: float | None = None,
        conf_stride: int = 1,
    ) -> None:
        super().__init__(scope, min_rank, threshold_cap, conf_stride)
        self.bins = bins

    def start(self, num_classes: int, device: torch.device) -> None:
        """Makes an empty histogram, with a column 0 for what lies below the first edge."""
        self._lowest = -math.log(max(num_classes, 31))  # the logit of 1 / (1 + that)
        highest = 24 * math.log(2)
        self._width = (highest - self._lowest) / (self.bins - 1)
        exact = torch.linspace(self._lowest, highest, self.bins, dtype=torch.float64).sigmoid()
        edges = exact.float()
        edges = torch.where(edges.double() < exact, edges.nextafter(edges.new_tensor(torch.inf)), edges)
        self._edges = edges.to(device)
        self._new_table(num_classes, self.bins + 1, device)

    def end_pass(self, portion: Decimal, all_reduce: Reduction = identity) -> bool:
        """Sets thresholds, counts, ranks and `selected`; never needs a second pass.

        Raises:
            ValueError: If a confidence was below 1/C, as no largest of C probabilities is, or not a number.
        """
        up_to = self._accumulate(all_reduce)
        if wrong := int(up_to[:, 0].sum()):
            raise ValueError(
                f"LogitHistogram: found {wrong} confidences below the {1 / (1 + math.exp(-self._lowest)):.3f} that the "
                "largest of these classes' probabilities reaches, or not a number. Scores weighted by a spatial prior "
                "need RadixSelect; else look for NaN in the network's output."
            )
        self._rank(portion, all_reduce)
        columns, _ = self._column_of_ranks()
        at_least = self.counts - up_to.gather(1, columns.view(-1, 1) - 1).squeeze(1)
        self.selected = at_least.where(self.ranks > 0, 0)
        self._set_thresholds(self._edges[columns - 1])
        del self._table
        return False

    def _count(self, confidence: Tensor, classes: Tensor, counted: Tensor | None) -> None:
        # a guess between half a bin too low and exact, then one comparison with the edge above it
        position = torch.logit(confidence, eps=2.0**-24).mul_(1 / self._width).add_(0.75 - self._lowest / self._width)
        columns = position.to(torch.int32).clamp_(0, self.bins - 1)
        columns.add_(self._edges.index_select(0, columns).le_(confidence).to(torch.int32))
        self._add(columns, classes, counted)


class RadixSelect(ThresholdSearch):
    """Exact, in two passes over the same images: the upper 16 bits of the float32 threshold, then the lower 16.

    Numbers that are not negative are ordered like their bits, so this holds for scores of any range, those weighted by
    a spatial prior too. The table of 19 classes takes 10 MB. The second pass must show the very confidences of the
    first; scores kept at the network's resolution and enlarged again give them.
    """

    def start(self, num_classes: int, device: torch.device) -> None:
        """Makes ready for the upper bits."""
        self._before: Tensor | None = None
        width = 2 + (1 << 16)  # the second pass has columns for what lies below and above
        self._new_table(num_classes, width, device)

    def end_pass(self, portion: Decimal, all_reduce: Reduction = identity) -> bool:
        """Sets counts and ranks after the first pass, thresholds after the second.

        Raises:
            ValueError: If a confidence was negative, infinite or not a number.
            RuntimeError: If the second pass showed other confidences than the first.
        """
        up_to = self._accumulate(all_reduce)
        if self._before is None:
            self._end_first(up_to, portion, all_reduce)
            return True
        self._end_second(self._before)
        return False

    def _end_first(self, up_to: Tensor, portion: Decimal, all_reduce: Reduction) -> None:
        if wrong := int((up_to[:, -1] - up_to[:, _NOT_A_CONFIDENCE - 1]).sum()):
            raise ValueError(
                f"RadixSelect: found {wrong} confidences that are negative, infinite or not a number; expected scores "
                "of 0 and more. Look for NaN in the network's output, or for a spatial prior with negative values."
            )
        self._rank(portion, all_reduce)
        columns, up_to = self._column_of_ranks()
        upper = columns.clamp(max=_NOT_A_CONFIDENCE)  # where nothing is, as where the rank is 0
        ends = up_to.gather(1, torch.stack([upper - 1, upper], dim=1).clamp(min=0))
        self._expected = torch.where(upper > 0, ends[:, 1] - ends[:, 0], ends[:, 1])
        self._before = upper.to(torch.int32).bitwise_left_shift(16) - 1
        self._table.zero_()

    def _end_second(self, before: Tensor) -> None:
        columns, up_to = self._column_of_ranks()
        if not torch.equal(up_to[:, -2] - up_to[:, 0], self._expected):
            raise RuntimeError(
                "RadixSelect: the second pass showed other confidences than the first. Keep the scores between the "
                "passes, make the inference deterministic, or use LogitHistogram, which needs one pass."
            )
        self._set_thresholds((before + columns.to(torch.int32)).view(torch.float32))
        del self._table

    def _count(self, confidence: Tensor, classes: Tensor, counted: Tensor | None) -> None:
        bits = confidence.view(torch.int32)
        if self._before is None:
            columns = (bits >> 16).bitwise_and_(0xFFFF)
        else:  # how far above the last number with smaller upper bits; what has other ones is put into an outer column
            columns = (bits - self._before.index_select(0, classes)).clamp_(0, self._table.shape[1] - 1)
        self._add(columns, classes, counted)


def every_nth_of_class(classes: Tensor, num_classes: int, n: int) -> Tensor:
    """Marks every n-th pixel of each class in each image, in raster order, starting with the first.

    Args:
        classes: Integer (..., H, W), or (pixels,) of one image.
        num_classes: C.
        n: Step.

    Returns:
        bool (pixels,), of all images in turn.
    """
    images = classes.reshape(-1, classes.shape[-2:].numel()).long()
    groups = (images + num_classes * torch.arange(len(images), device=classes.device).view(-1, 1)).view(-1)
    sizes = torch.zeros(num_classes * len(images), dtype=torch.int64, device=classes.device)
    sizes.index_add_(0, groups, torch.ones_like(groups))
    order = groups.argsort(stable=True)
    first = sizes.cumsum(0) - sizes
    place = torch.arange(len(order), device=classes.device) - first[groups[order]]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(0, order, place % n == 0)
