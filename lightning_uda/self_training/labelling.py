"""Class scores of a whole target set, looked at as often as self-training needs it (CBST, step a)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_uda.inference import Inference
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.self_training.class_balance import class_balance_score
from lightning_uda.self_training.stored_logits import StoredLogits
from lightning_uda.self_training.thresholds import ThresholdSearch, identity

Follow = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes items on and shows progress; takes the items, a title and their number."""


@dataclass(frozen=True)
class Ranks:
    """Processes that share a target set: each takes every `world_size`-th image, none is given twice.

    Attributes:
        rank: This process.
        world_size: Number of processes.
        all_reduce: Sums a tensor over all of them.
    """

    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = identity


class TargetScores:
    """Scores of images, float32 at the size of their files; the network is run once, in eval mode (see `StoredLogits`).

    Args:
        network: Gives logits for images.
        images: Gives "image", uint8 (3, H, W), and "size", the height and width of the file.
        inference: How images are put through the network.
        prior: Gives the spatial prior (C, *size) of a size, which probabilities are multiplied by; `None` for none.
        num_workers: Processes that read images.
        ranks: Who shares the images.
        follow: Shows progress.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        images: Dataset[Any],
        inference: Inference,
        prior: Callable[[tuple[int, int]], Tensor] | None = None,
        num_workers: int = 0,
        ranks: Ranks = Ranks(),
        follow: Follow = lambda items, title, total: items,
    ) -> None:
        self.network = network
        self.images = images
        self.inference = inference
        self.prior = prior
        self.num_workers = num_workers
        self.ranks = ranks
        self.follow = follow
        self.num_classes = network.num_classes
        self.device = next(network.parameters()).device
        self._stored: StoredLogits | None = None

    @contextmanager
    def kept_in(self, folder: Path) -> Iterator[None]:
        """Within the block images can be looked at; logits are kept below `folder`, and removed when it is left.

        Raises:
            OSError: If they can't be written.
        """
        training = self.network.training
        with TemporaryDirectory(dir=folder, prefix="logits_") as logits, torch.no_grad():
            self._stored = StoredLogits(self.network.eval(), Path(logits))
            try:
                yield
            finally:
                self._stored = None
                self.network.train(training)

    def look(self, indices: Sequence[int], title: str, weighted: bool = True) -> Iterator[tuple[int, Tensor]]:
        """Index and scores, float32 (1, C, H, W), of each image of this rank.

        Args:
            indices: The images of all ranks.
            title: What is shown beside the progress.
            weighted: Whether probabilities are multiplied by the prior.
        """
        assert self._stored is not None
        mine = indices[self.ranks.rank :: self.ranks.world_size]
        loader = DataLoader(Subset(self.images, mine), batch_size=None, num_workers=self.num_workers)
        for index, item in self.follow(zip(mine, loader, strict=True), title, len(mine)):
            self._stored.show(index)
            size = int(item["size"][0]), int(item["size"][1])
            scores = self.inference(self._stored, item["image"].to(self.device).unsqueeze(0).float() / 255, size)
            probs = scores.float() if self.inference.gives_probabilities else scores.float().softmax(dim=1)
            yield index, probs if self.prior is None or not weighted else probs * self.prior(size).to(self.device)

    def find_thresholds(self, indices: Sequence[int], search: ThresholdSearch, portion: Decimal) -> None:
        """Shows the largest scores of all pixels to a search until it has found exp(-k).

        Args:
            indices: The images of all ranks.
            search: Holds the thresholds afterwards.
            portion: Portion of the pixels that shall reach them.
        """
        search.start(self.num_classes, self.device)
        unfinished = True
        while unfinished:
            for _, scores in self.look(indices, "threshold"):
                search.update(*scores.max(dim=1))
            unfinished = search.end_pass(portion, self.ranks.all_reduce)

    def most_balanced(self, indices: Sequence[int], number: int) -> list[int]:
        """The images of the highest class-balance score, by probabilities without the prior; ascending.

        Args:
            indices: The images to choose from; the earlier one is taken among equals.
            number: How many.
        """
        balance = torch.zeros(len(indices), dtype=torch.float64, device=self.device)
        place = {index: i for i, index in enumerate(indices)}
        for index, probs in self.look(indices, "choosing", weighted=False):
            balance[place[index]] = class_balance_score(*probs.max(dim=1), self.num_classes)[0]
        ranking = self.ranks.all_reduce(balance).argsort(descending=True, stable=True)
        return sorted(indices[i] for i in ranking[:number].tolist())


class LabelCounts:
    """Counts pseudo-labels, and compares them with the truth where that is known.

    Args:
        num_classes: C.
        device: Where labels are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.table = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64, device=device)

    def update(self, label: Tensor, truth: Tensor | None) -> None:
        """Adds an image: labels and truth, uint8 (H, W) with 255 for none."""
        rows = label.long().clamp(max=self.num_classes)
        columns = torch.full_like(rows, self.num_classes) if truth is None else truth.long().clamp(max=self.num_classes)
        cells = (rows * (self.num_classes + 1) + columns).view(-1)
        self.table += torch.bincount(cells, minlength=self.table.numel()).view_as(self.table)

    def all_reduce(self, ranks: Ranks) -> None:
        """Adds up the counts of all ranks."""
        self.table = ranks.all_reduce(self.table)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(self.table.sum())

    @property
    def labelled(self) -> list[int]:
        """Pixels that each class labels."""
        return [int(count) for count in self.table.sum(dim=1)[:-1]]

    @property
    def accuracy(self) -> list[float | None]:
        """Share of right ones among each class's labels, in percent, where the truth is known; else `None`."""
        known = self.table[:-1, :-1]
        pairs = zip(known.diagonal().tolist(), known.sum(dim=1).tolist(), strict=True)
        return [100 * right / judged if judged else None for right, judged in pairs]
