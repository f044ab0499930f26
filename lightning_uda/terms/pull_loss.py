"""Pulling the target to the source: contrast of translated source pixels with source prototypes (T2S-DA)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_uda.precision import full_precision
from lightning_uda.pseudo_labels import class_counts
from lightning_uda.terms.contrast import membership
from lightning_uda.terms.pull_draws import Draws, QuerySampling, classes_of_queries, draw, unreliable

PrototypeNorm = Literal["after", "before", "both"]
Objective = Literal["infonce", "mse"]
Reduction = Literal["mean", "eq3"]

_CHUNK, _TOGETHER = 64, 8
"""Queries of one class that are compared with its negatives at a time, and how many such chunks are worked on."""


def pixel_rows(features: Tensor) -> Tensor:
    """Features (N, D, h, w) as a row for each pixel, float32 (N h w, D)."""
    return features.float().permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (P, D) of length 1; those of length 0 stay 0, and send no gradient back."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows * torch.where(lengths > 0, 1 / lengths.clamp(min=1e-12), 0)


def source_prototypes(rows: Tensor, labels: Tensor, num_classes: int, norm: PrototypeNorm = "after") -> Tensor:
    """Positive keys: the mean of each class's features (T2S-DA, Eqs. 5 and 6).

    Args:
        rows: Teacher features, float32 (P, D).
        labels: Of the pixels, int64 of P elements; 255 is void.
        num_classes: C.
        norm: Whether lengths are made 1 "after" the mean (the paper), "before" it (the pseudo-code, whose prototypes
            are shorter), or "both".

    Returns:
        float32 (C, D); 0 for absent classes.
    """
    with full_precision(rows.device):
        members = membership(labels.view(1, -1), num_classes)[0]
        means = members @ (rows if norm == "after" else unit_rows(rows))
        return means if norm == "before" else unit_rows(means)


class Keys(NamedTuple):
    """Teacher features of a batch and what their pixels are.

    Attributes:
        features: (N, D, h, w).
        labels: int64 (N, h, w), on the grid of the features; 255 is void.
        confidence: Of a teacher in its labels, float (N, h, w); `None` for ground truth.
    """

    features: Tensor
    labels: Tensor
    confidence: Tensor | None = None


def pull(
    queries: Tensor,
    source: Keys,
    target: Keys | None,
    weights: Tensor,
    generator: torch.Generator,
    positives: Keys | None = None,
    *,
    n: int = 128,
    m: int = 1024,
    tau: float = 0.2,
    alpha: float = 0.5,
    gamma_per_image: bool = False,
    sampling: QuerySampling = "cbqs",
    halves: bool = True,
    void: bool = False,
    norm: PrototypeNorm = "after",
    objective: Objective = "infonce",
    reduction: Reduction = "mean",
) -> Tensor:
    """L_pull of a batch: draws queries and negatives, and compares them.

    Args:
        queries: Student features (N, D, h, w) of images that have the labels of the source, its translation as a rule;
            the gradient goes into these alone.
        source: The source images.
        target: The target images, with confidence, whose less confident pixels are negatives too; `None`: none are.
        weights: Of the classes, float32 (C,).
        generator: Source of randomness, on the CPU.
        positives: What prototypes are made of, instead of the source. Classes that it lacks aren't pulled.
        n: As in `query_counts`.
        m: As in `draw`.
        tau: As in `pull_loss`.
        alpha: Share of the target's pixels that count as unreliable, 0-1.
        gamma_per_image: Whether that is the share of each image, instead of the batch.
        sampling: As in `draw`.
        halves: As in `draw`.
        void: As in `draw`.
        norm: As in `source_prototypes`.
        objective: As in `pull_loss`.
        reduction: As in `pull_loss`.

    Returns:
        Scalar, float32; 0, with a graph, where there is nothing to pull.
    """
    num_classes, from_source = len(weights), positives is None or positives is source
    positives = source if positives is None else positives
    with torch.no_grad():
        rows = pixel_rows(source.features)
        toward = rows if from_source else pixel_rows(positives.features)
        prototypes = source_prototypes(toward, positives.labels, num_classes, norm)
        if not from_source:
            weights = weights * (class_counts(positives.labels, num_classes)[:-1] > 0)
        negatives = None
        if target is not None:
            assert target.confidence is not None
            negatives = unreliable(target.labels, target.confidence, alpha, gamma_per_image)
            rows = torch.cat([rows, pixel_rows(target.features)])
        draws = draw(source.labels, negatives, num_classes, generator, n, m, sampling, halves, void)
        keys = unit_rows(rows)
        del rows, toward  # which take as much memory as the keys
    return pull_loss(pixel_rows(queries), prototypes, keys, draws, weights, tau, objective, reduction)


def pull_loss(
    queries: Tensor,
    prototypes: Tensor,
    keys: Tensor,
    draws: Draws,
    weights: Tensor,
    tau: float = 0.2,
    objective: Objective = "infonce",
    reduction: Reduction = "mean",
) -> Tensor:
    """L_pull of given draws.

    Args:
        queries: Student features of the query grid, (P, D); the gradient goes into these alone.
        prototypes: As `source_prototypes` gives them, (C, D).
        keys: Teacher features of the source grid's pixels, then of the target grid's, of length 1, float32 (K, D).
        draws: Which of them are compared.
        weights: Of the classes, float32 (C,).
        tau: Temperature.
        objective: "infonce" (Eq. 2) or "mse", the squared distance of query and prototype.
        reduction: "mean", sum over c of w(c) times the mean over its queries; or "eq3", sum over c of w(c) / C times
            their sum.

    Returns:
        Scalar, float32; 0 where there are no queries.
    """
    losses = query_losses(queries, prototypes, keys, draws, tau, objective)
    counts = draws.counts
    shares = weights / (counts.clamp(min=1) if reduction == "mean" else len(counts))
    places = torch.arange(len(losses), device=losses.device)
    return (losses * shares[classes_of_queries(counts, len(losses))]).where(places < counts.sum(), 0).sum()


def query_losses(
    queries: Tensor, prototypes: Tensor, keys: Tensor, draws: Draws, tau: float = 0.2, objective: Objective = "infonce"
) -> Tensor:
    """The loss of each query drawn, float32 (Q,); arguments as in `pull_loss`.

    Where the grids are so small that all pixels compare with all keys in fewer products than the draws ask for (the
    last level of a MiT), that is what is done, and each pixel's loss is computed once however often it was drawn.
    """
    with full_precision(queries.device):
        if objective == "infonce" and len(queries) * len(keys) <= len(draws.queries) * draws.negatives.shape[1]:
            return _losses_of_pixels(unit_rows(queries.float()), prototypes, keys, draws, tau)[draws.queries]
        drawn = unit_rows(queries.index_select(0, draws.queries).float())
        if objective == "mse":
            return (drawn - prototypes[classes_of_queries(draws.counts, len(drawn))]).square().sum(dim=1)
        losses: Tensor = _InfoNCE.apply(drawn, prototypes, keys, draws, tau)
        return losses


def _losses_of_pixels(queries: Tensor, prototypes: Tensor, keys: Tensor, draws: Draws, tau: float) -> Tensor:
    """The InfoNCE of each pixel (P,) that is a query; of no meaning for the others.

    A negative that was drawn k times counts as one whose similarity is log k higher.
    """
    num_classes = len(draws.counts)
    drawn = classes_of_queries(draws.counts, len(draws.queries))
    counted = torch.arange(len(drawn), device=drawn.device) < draws.counts.sum()
    spare = len(queries)  # for the draws that count for nothing
    classes = drawn.new_zeros(spare + 1).scatter_(0, draws.queries.where(counted, spare), drawn)[:-1]
    places = draws.negatives + len(keys) * torch.arange(num_classes, device=drawn.device).unsqueeze(1)
    times = keys.new_zeros(num_classes * len(keys))
    times.scatter_add_(0, places.flatten(), times.new_ones(places.numel()))
    raised = times.log().view(num_classes, -1).masked_fill(~draws.contrasted.unsqueeze(1), -torch.inf)
    positive = (queries * prototypes[classes]).sum(dim=1, keepdim=True) / tau
    negative = torch.addmm(raised[classes], queries, keys.T, alpha=1 / tau)
    return torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive.squeeze(1)


class _InfoNCE(torch.autograd.Function):
    """-log( e^(q.p / tau) / (e^(q.p / tau) + sum of e^(q.k / tau)) ) of each query q, its class's p and negatives k.

    The queries of a class are cut into chunks, so that a chunk times its class's negatives is one product of a batch of
    them; how many chunks there are at most is known beforehand. The gradient is formed at once, so that no similarities
    are kept: (mean of p and all k by their e^(...), minus p) / tau.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, prototypes: Tensor, keys: Tensor, draws: Draws, tau: float) -> Tensor:
        """Losses (Q,) of queries (Q, D); of no meaning beyond the last class."""
        counts, device = draws.counts, queries.device
        chunks = len(queries) // _CHUNK + len(counts)
        of_class = (counts + _CHUNK - 1) // _CHUNK
        class_of_chunk = classes_of_queries(of_class, chunks)
        first_chunk, first_query = of_class.cumsum(0) - of_class, counts.cumsum(0) - counts
        within = torch.arange(chunks, device=device) - first_chunk[class_of_chunk]
        members = (first_query[class_of_chunk] + _CHUNK * within)[:, None] + torch.arange(_CHUNK, device=device)
        members = members.clamp(max=len(queries) - 1)  # what isn't of the class is computed, too, and not used

        losses, gradients = queries.new_empty(chunks, _CHUNK), queries.new_empty(chunks, _CHUNK, queries.shape[1])
        excluded = torch.zeros_like(counts, dtype=torch.float32).masked_fill(~draws.contrasted, -torch.inf)
        for start in range(0, chunks, _TOGETHER):
            part = slice(start, start + _TOGETHER)
            classes = class_of_chunk[part]
            q, p, k = queries[members[part]], prototypes[classes].unsqueeze(1), keys[draws.negatives[classes]]
            positive = (q * p).sum(dim=2, keepdim=True) / tau
            negative = torch.baddbmm(excluded[classes].view(-1, 1, 1), q, k.transpose(1, 2), alpha=1 / tau)
            top = torch.maximum(negative.amax(dim=2, keepdim=True), positive)
            e, own = negative.sub_(top).exp_(), (positive - top).exp()
            total = e.sum(dim=2, keepdim=True) + own
            losses[part] = (total.log() + top - positive).squeeze(2)
            gradients[part] = (torch.bmm(e, k) + (own - total) * p) / (tau * total)

        places, classes = torch.arange(len(queries), device=device), classes_of_queries(counts, len(queries))
        slots = _CHUNK * first_chunk[classes] + places - first_query[classes]
        slots = slots.clamp(max=losses.numel() - 1)
        ctx.save_for_backward(gradients.flatten(0, 1)[slots])
        return losses.flatten()[slots]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The gradient of each query, times that of its loss."""
        return ctx.saved_tensors[0] * grad.unsqueeze(1), None, None, None, None
