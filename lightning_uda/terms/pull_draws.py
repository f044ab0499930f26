"""Which pixels T2S-DA pulls, and which it pushes them from: counts, thresholds and draws (Wang et al., 2023).

Nothing here depends on how many pixels a class has but for values: shapes are known beforehand, so that nothing has to
be read back from an accelerator. Pixels are numbered through a batch of feature grids, (n h + y) w + x.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.pseudo_labels import class_counts

QuerySampling = Literal["cbqs", "ceqs", "random"]


class Draws(NamedTuple):
    """Pixels drawn for the contrast.

    Attributes:
        queries: int64 (Q,), pixels of the query grid, with repetitions: those of class 0, then those of class 1, and so
            on. What comes after the last class is of no meaning, and counts for nothing.
        counts: int64 (C,), number of queries of each class.
        negatives: int64 (C, m), pixels of the source grid and, from its number of pixels on, of the target grid, which
            all queries of a class are pushed from.
        contrasted: bool (C,), whether a class has negatives; else those of its row are of no meaning.
    """

    queries: Tensor
    counts: Tensor
    negatives: Tensor
    contrasted: Tensor


def query_counts(labels: Tensor, num_classes: int, n: int = 128, balanced: bool = True) -> Tensor:
    """How many queries each class gets.

    Args:
        labels: Of the pixels that queries are drawn from, int64 of any shape; 255 (void) gets none.
        num_classes: C.
        n: Mean number of queries of a class.
        balanced: Class-balanced query sampling (CBQS): ceil(C p n) for a class that has the share p of the valid
            pixels, which are C n to C n + C in sum. Else n for each class that is present (CEQS).

    Returns:
        int64 (C,); 0 for absent classes.
    """
    counts = class_counts(labels, num_classes)[:-1]
    if not balanced:
        return n * (counts > 0)
    valid = counts.sum().clamp(min=1)
    return (num_classes * n * counts + valid - 1) // valid  # in whole numbers: a rounding error would add a query


def most_queries(num_classes: int, n: int, sampling: QuerySampling) -> int:
    """Most queries that a batch can have, whatever its labels."""
    return num_classes * n + (num_classes if sampling == "cbqs" else 0)


def percentile(confidence: Tensor, alpha: float, per_image: bool = False) -> Tensor:
    """Gamma: the alpha-quantile of confidences, interpolated linearly between the two nearest.

    Args:
        confidence: float (N, h, w).
        alpha: Share of the pixels below, 0-1.
        per_image: Whether each image has one of its own, instead of the batch.

    Returns:
        float32, (N, 1, 1) or (1, 1, 1).
    """
    ordered = confidence.float().flatten(1) if per_image else confidence.float().view(1, -1)
    ordered = ordered.sort(dim=1).values
    place = alpha * (ordered.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    return ordered[:, below].lerp(ordered[:, above], place - below).view(-1, 1, 1)


def unreliable(labels: Tensor, confidence: Tensor, alpha: float = 0.5, per_image: bool = False) -> Tensor:
    """Labels of the pixels whose confidence lies below the percentile (strictly), and 255 for the others.

    Args:
        labels: The teacher's labels, int64 (N, h, w).
        confidence: Of them, float (N, h, w).
        alpha: As in `percentile`.
        per_image: As in `percentile`.

    Returns:
        int64 (N, h, w).
    """
    return labels.masked_fill(confidence.float() >= percentile(confidence, alpha, per_image), IGNORE_INDEX)


class ByClass(NamedTuple):
    """Pixels in the order of their classes, void ones last.

    Attributes:
        order: int64 (P,), the pixels.
        counts: int64 (C,), how many of them each class has.
        starts: int64 (C,), where in `order` each class begins.
    """

    order: Tensor
    counts: Tensor
    starts: Tensor


def by_class(labels: Tensor, num_classes: int) -> ByClass:
    """Sorts the pixels of labels, int64 of any shape, by their classes."""
    order = labels.flatten().clamp(max=num_classes).argsort(stable=True)
    counts = class_counts(labels, num_classes)[:-1]
    return ByClass(order, counts, counts.cumsum(0) - counts)


def draw(
    source: Tensor,
    target: Tensor | None,
    num_classes: int,
    generator: torch.Generator,
    n: int = 128,
    m: int = 1024,
    sampling: QuerySampling = "cbqs",
    halves: bool = True,
    void: bool = False,
) -> Draws:
    """Draws queries and negatives, with replacement.

    Args:
        source: Labels of the source grid, which are those of the query grid too, int64 (N, h, w); 255 is void.
        target: Labels of those pixels of the target grid that may serve as negatives, 255 for the others (see
            `unreliable`), int64 (M, h, w); `None` leaves target pixels out.
        num_classes: C.
        generator: Source of randomness, on the CPU.
        n: As in `query_counts`.
        m: Negatives of each class.
        sampling: How queries are drawn: "cbqs" and "ceqs" give each class a number (see `query_counts`), "random" draws
            C n valid pixels whatever their class.
        halves: Whether half of the negatives come from the source and half from the target (DENPS), all of them from
            one where the other has none; else from both by the number of their pixels.
        void: Whether void pixels of the source serve as negatives (of every class).

    Returns:
        The draws, on the device of the labels.
    """
    total = most_queries(num_classes, n, sampling)
    uniform = torch.rand(total + num_classes * m, generator=generator, dtype=torch.float32)
    uniform = uniform.to(source.device, non_blocking=True)
    pixels = by_class(source, num_classes)
    draws = _draw_queries if sampling == "random" else _draw_queries_of_classes
    counts = query_counts(source, num_classes, n, balanced=sampling == "cbqs")
    queries, counts = draws(pixels, counts, uniform[:total])
    uniform = uniform[total:].view(num_classes, m)
    if target is None:
        return Draws(queries, counts, *_draw_negatives(pixels, None, uniform, source.numel(), halves, void))
    others = by_class(target, num_classes)
    return Draws(queries, counts, *_draw_negatives(pixels, others, uniform, source.numel(), halves, void))


def classes_of_queries(counts: Tensor, total: int) -> Tensor:
    """Class of each of `total` queries, int64, given how many each class has; C - 1 for those beyond the last."""
    places = torch.arange(total, device=counts.device)
    return torch.searchsorted(counts.cumsum(0), places, right=True).clamp(max=len(counts) - 1)


def _draw_queries_of_classes(pixels: ByClass, counts: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """So many pixels of each class."""
    classes = classes_of_queries(counts, len(uniform))
    places = pixels.starts[classes] + _ranks(uniform, pixels.counts[classes])
    return pixels.order[places.clamp(max=len(pixels.order) - 1)], counts


def _draw_queries(pixels: ByClass, _: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of any class, sorted by it."""
    places = _ranks(uniform, pixels.counts.sum()).sort().values
    ends = pixels.starts + pixels.counts
    before = torch.searchsorted(places, ends)  # how many were drawn of this class and those before it
    return pixels.order[places], before.diff(prepend=torch.zeros_like(before[:1]))


def _draw_negatives(
    source: ByClass, target: ByClass | None, uniform: Tensor, offset: int, halves: bool, void: bool
) -> tuple[Tensor, Tensor]:
    """For each class pixels of others, numbered from `offset` on where they are the target's; and whether it has any.

    The pool of a class is the order by class with the class's block taken out, so a rank in it is a place in the order,
    moved past the block.
    """
    near = _size_without_class(source, void)
    far = torch.zeros_like(near) if target is None else _size_without_class(target, False)
    if halves:
        second = torch.arange(uniform.shape[1], device=uniform.device) >= uniform.shape[1] // 2
        from_target = (second & (far > 0)) | (near == 0)
        near_ranks, far_ranks = _ranks(uniform, near), _ranks(uniform, far)
    else:
        ranks = _ranks(uniform, near + far)
        from_target, near_ranks, far_ranks = ranks >= near, ranks, (ranks - near).clamp(min=0)
    negatives = _at_ranks_without_class(source, near_ranks)
    if target is not None:
        negatives = torch.where(from_target, offset + _at_ranks_without_class(target, far_ranks), negatives)
    return negatives, (near + far).squeeze(1) > 0


def _size_without_class(pixels: ByClass, void: bool) -> Tensor:
    """Number of pixels that aren't of a class, int64 (C, 1)."""
    total = len(pixels.order) if void else pixels.counts.sum()
    return (total - pixels.counts).unsqueeze(1)


def _at_ranks_without_class(pixels: ByClass, ranks: Tensor) -> Tensor:
    """Pixels at ranks (C, m) among those that aren't of a row's class; any pixels where there are none."""
    starts, counts = pixels.starts.unsqueeze(1), pixels.counts.unsqueeze(1)
    places = torch.where(ranks >= starts, ranks + counts, ranks)
    return pixels.order[places.clamp(max=len(pixels.order) - 1)]


def _ranks(uniform: Tensor, size: Tensor) -> Tensor:
    """Whole numbers from 0 to size - 1, of numbers in [0, 1); 0 where the size is 0."""
    return torch.minimum((uniform * size).long(), size - 1).clamp(min=0)
