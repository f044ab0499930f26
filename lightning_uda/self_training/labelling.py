"""Step a of a round of self-training: thresholds over all target pixels, then the label of each (CBST)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_uda.resize import resize_label, size_of
from lightning_uda.self_training.label_folder import LabelFolder
from lightning_uda.self_training.target_scores import Ranks, TargetScores
from lightning_uda.self_training.thresholds import ThresholdSearch

Assign = Callable[[Tensor, Tensor], Tensor]
"""Gives pseudo-labels, uint8 (N, H, W) with 255 for none, of scores (N, C, H, W) and thresholds (C,)."""

Truth = Callable[[int], npt.NDArray[np.uint8]]
"""Gives the true label map of an image, uint8 (H, W) of train ids and 255, of any size."""


def label_images(
    scores: TargetScores,
    indices: Sequence[int],
    search: ThresholdSearch,
    portion: Decimal,
    assign: Assign,
    labels: LabelFolder,
    truth: Truth | None = None,
) -> LabelCounts:
    """Finds the thresholds, then writes the pseudo-labels of all images.

    Args:
        scores: Gives the images' scores; its logits must be kept meanwhile.
        indices: The images of all ranks.
        search: Holds the thresholds afterwards.
        portion: Portion of the pixels that shall reach them.
        assign: Gives the labels.
        labels: Where they are written.
        truth: What they are compared with; `None` compares them with nothing.

    Returns:
        Counts of the labels of all ranks.

    Raises:
        OSError: If they can't be written.
    """
    scores.find_thresholds(indices, search, portion)
    counts = LabelCounts(scores.num_classes, scores.device)
    for index, probs in scores.of(indices, "labelling"):
        label = assign(probs, search.thresholds)[0]
        counts.update(label, None if truth is None else truth(index))
        labels.write(index, label.cpu().numpy())
    counts.all_reduce(scores.ranks)
    return counts


class LabelCounts:
    """Counts pseudo-labels, and compares them with the truth where that is known.

    Args:
        num_classes: C.
        device: Where labels are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.table = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64, device=device)

    def update(self, label: Tensor, truth: npt.NDArray[np.uint8] | None) -> None:
        """Adds an image: labels and truth, uint8 (H, W) with 255 for none; the truth is brought to the labels' size."""
        rows = label.long().clamp(max=self.num_classes)
        columns = torch.full_like(rows, self.num_classes)
        if truth is not None:
            true = torch.from_numpy(resize_label(truth, size_of(label))).to(label.device)
            columns = true.long().clamp(max=self.num_classes)
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
