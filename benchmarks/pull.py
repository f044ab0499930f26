"""Inputs of T2S-DA's pull, and both forms of it: a loop over classes that is given our draws, and our code."""

import naive
import torch
from inputs import CLASS_SHARES, rank_of, smooth

from lightning_uda.terms.pull_draws import draw, unreliable
from lightning_uda.terms.pull_loss import Keys, pull

BATCH, CHANNELS, CLASSES = 2, 256, 19


class PullInputs:
    """Features of a side, labels of all classes at about their shares and some void, and what is drawn of them."""

    def __init__(self, side):
        generator = torch.Generator().manual_seed(0)
        shares = CLASS_SHARES.cumsum(0)[:-1]
        shape = (BATCH, side, side)
        self.labels, self.pseudo_labels = (
            torch.bucketize(rank_of(smooth(*shape, generator=generator)), shares) for _ in range(2)
        )
        self.labels = self.labels.masked_fill(rank_of(smooth(*shape, generator=generator)) > 0.985, 255)
        self.confidence = torch.rand(shape, generator=generator)
        self.features = [torch.randn(BATCH, CHANNELS, side, side, generator=generator).relu() for _ in range(3)]
        self.weights = torch.full((CLASSES,), 1 / CLASSES)
        self.ranks = self.ranks_of(self.draws())

    def draws(self):
        """Our draws, the same in every call."""
        target = unreliable(self.pseudo_labels, self.confidence)
        return draw(self.labels, target, CLASSES, torch.Generator().manual_seed(1))

    def ranks_of(self, draws):
        """The same draws as numbers among each class's candidates, for the naive form."""
        labels, below = (
            self.labels.flatten(),
            self.confidence.flatten() < torch.quantile(self.confidence.flatten(), 0.5),
        )
        ranks, start = {}, 0
        for c, count in enumerate(draws.counts.tolist()):
            pools = (
                labels == c,
                (labels != c) & (labels != naive.IGNORE_INDEX),
                (self.pseudo_labels.flatten() != c) & below,
            )
            near, far = draws.negatives[c].chunk(2)
            pixels = (draws.queries[start : start + count], near, far - labels.numel())
            ranks[c] = tuple((pool.cumsum(0) - 1)[chosen] for pool, chosen in zip(pools, pixels, strict=True))
            start += count
        return ranks

    def naive(self):
        """Loss and gradient of the loop."""
        queries = self.features[0].clone().requires_grad_()
        features = (queries, *self.features[1:])
        loss = naive.pull(features, self.labels, self.pseudo_labels, self.confidence, self.ranks, self.weights)
        loss.backward()
        return loss.detach(), queries.grad

    def ours(self):
        """Loss and gradient of our code."""
        queries = self.features[0].clone().requires_grad_()
        source = Keys(self.features[1], self.labels)
        target = Keys(self.features[2], self.pseudo_labels, self.confidence)
        loss = pull(queries, source, target, self.weights, torch.Generator().manual_seed(1))
        loss.backward()
        return loss.detach(), queries.grad
