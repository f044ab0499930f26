"""Class scores of all target images, as often as step a of a round needs them (CBST)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_uda.data.workers import WorkerLoader, start_worker
from lightning_uda.inference import Inference
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.resize import Size, size_of
from lightning_uda.self_training.class_balance import class_balance_score
from lightning_uda.self_training.stored_logits import StoredLogits
from lightning_uda.self_training.thresholds import ThresholdSearch, identity
from lightning_uda.step import to_float

Follow = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Passes items on and shows progress; takes the items, a title and their number."""


def unseen(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """Shows no progress."""
    return items


@dataclass(frozen=True)
class Ranks:
    """Processes that share a target set: each takes every `world_size`-th image, beginning with its own rank.

    Attributes:
        rank: This process.
        world_size: Number of processes.
        all_reduce: Sums a tensor over all of them.
    """

    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = identity


class TargetScores:
    """Scores of images, float32 at the size of their files.

    An image is decoded, and the network run on it in eval mode, when its scores are first asked for; after that they
    are computed from its logits (see `StoredLogits`).

    Args:
        network: Gives logits for images.
        images: Gives "image", uint8 (3, H, W), and "size", the height and width of the file.
        inference: How images are put through the network.
        prior: Gives the spatial prior (C, *size) of a size, which probabilities are multiplied by; `None` for none.
            Those of the four sizes used last are kept: of 19 classes at 1024 x 2048 one takes 159 MB.
        num_workers: Processes that read images.
        ranks: Who shares the images.
        follow: Shows progress.
        stored_bits: `bits` of `StoredLogits`.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        images: Dataset[Any],
        inference: Inference,
        prior: Callable[[Size], Tensor] | None = None,
        num_workers: int = 0,
        ranks: Ranks = Ranks(),
        follow: Follow = unseen,
        stored_bits: Literal[16, 32] = 32,
    ) -> None:
        self.network = network
        self.images = images
        self.inference = inference
        self.prior = None if prior is None else lru_cache(maxsize=4)(prior)
        self.num_workers = num_workers
        self.ranks = ranks
        self.follow = follow
        self.stored_bits = stored_bits
        self.num_classes = network.num_classes
        self.device = next(network.parameters()).device
        self._stored: StoredLogits | None = None
        self._sizes: dict[int, tuple[Size, Size]] = {}  # of the images whose logits are stored, and of their files

    @contextmanager
    def kept_in(self, folder: Path, num_images: int) -> Iterator[None]:
        """Within the block scores can be had; the logits lie on the disk of `folder` until it is left.

        Args:
            folder: The folder; it must exist.
            num_images: How many images all ranks together will ask for.

        Raises:
            OSError: If they can't be written.
        """
        training = self.network.training
        self._stored = StoredLogits(self.network.eval(), folder, num_images, self.stored_bits)
        try:
            with torch.no_grad():
                yield
        finally:
            self._stored.close()
            self._stored = None
            self._sizes.clear()
            self.network.train(training)

    def of(self, indices: Sequence[int], title: str, weighted: bool = True) -> Iterator[tuple[int, Tensor]]:
        """Index and scores, float32 (1, C, H, W), of each image of this rank.

        Args:
            indices: The images of all ranks.
            title: What is shown beside the progress.
            weighted: Whether probabilities are multiplied by the prior.
        """
        mine = [index for index in indices if index % self.ranks.world_size == self.ranks.rank]
        items = self._read([index for index in mine if index not in self._sizes])
        for index in self.follow(mine, title, len(mine)):
            if index in self._sizes:
                image = torch.empty(1, 3, *self._sizes[index][0], device="meta")  # its logits are there: a size will do
            else:
                item = next(items)
                image = to_float(item["image"].to(self.device).unsqueeze(0))
                self._sizes[index] = size_of(image), (int(item["size"][0]), int(item["size"][1]))
            yield index, self._scores(index, image, self._sizes[index][1], weighted)

    def _read(self, indices: list[int]) -> Iterator[Any]:
        """The items of some images, decoded by the workers."""
        if not indices:
            return iter(())
        chosen = Subset(self.images, indices)
        return iter(WorkerLoader(chosen, batch_size=None, num_workers=self.num_workers, worker_init_fn=start_worker))

    def _scores(self, index: int, image: Tensor, size: Size, weighted: bool) -> Tensor:
        assert self._stored is not None
        self._stored.show(index)
        scores = self.inference(self._stored, image, size).float()
        probs = scores if self.inference.gives_probabilities else scores.softmax(dim=1)
        return probs * self.prior(size) if self.prior is not None and weighted else probs

    def find_thresholds(self, indices: Sequence[int], search: ThresholdSearch, portion: Decimal) -> None:
        """Gives the largest score of every pixel to a search, as often as it needs to find exp(-k).

        Args:
            indices: The images of all ranks.
            search: Holds the thresholds afterwards.
            portion: Portion of the pixels that shall reach them.
        """
        search.start(self.num_classes, self.device)
        unfinished = True
        while unfinished:
            for _, scores in self.of(indices, "threshold"):
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
        for index, probs in self.of(indices, "choosing", weighted=False):
            balance[place[index]] = class_balance_score(*probs.max(dim=1), self.num_classes)[0]
        ranking = self.ranks.all_reduce(balance).argsort(descending=True, stable=True)
        return sorted(indices[i] for i in ranking[:number].tolist())
