"""Distribution alignment: pseudo-labels that follow a known class distribution (ReMixMatch; a row of DACS's tables)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_uda.ranges import COUNT, ranged


class DistributionAlignment(nn.Module):
    """Rescales the teacher's probabilities so that, over time, they follow a prior: q p / p_seen, normalised per pixel.

    p_seen is the mean of the teacher's predictions over the last batches, of all processes. The prior p,
    pixel shares of the classes, is counted by the callback `AlignmentPrior`, which the method brings.

    Args:
        prior_of: Whose labels the prior is counted from: "source", which every user has, or "target", the ground truth
            of the target training set, as in DACS's paper. The latter is an oracle and should be called one in any
            table; it needs labels of `data.target`.
        window: Batches that p_seen averages over. DACS's paper gives none; 128 is ReMixMatch's.

    Raises:
        ValueError: If `window` is below 1.
    """

    prior: Tensor
    history: Tensor
    batches: Tensor

    @ranged(window=COUNT)
    def __init__(self, prior_of: Literal["source", "target"] = "source", window: int = 128) -> None:
        super().__init__()
        self.prior_of = prior_of
        self.window = window

    def set_classes(self, num_classes: int) -> None:
        """Creates the buffers, with a uniform prior; the method calls it once."""
        self.register_buffer("prior", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("history", torch.zeros(self.window, num_classes))
        self.register_buffer("batches", torch.zeros(1, dtype=torch.int64))

    def forward(self, probs: Tensor) -> Tensor:
        """Aligns one batch, after adding it to p_seen.

        Args:
            probs: Teacher probabilities, float (N, C, H, W).

        Returns:
            Aligned probabilities, float (N, C, H, W).
        """
        newest = probs.mean(dim=(0, 2, 3)).unsqueeze(0)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(newest)
            newest /= torch.distributed.get_world_size()
        self.history.index_copy_(0, self.batches % self.window, newest.to(self.history.dtype))
        self.batches += 1
        seen = self.history.sum(0) / self.batches.clamp(max=self.window)
        aligned = probs * (self.prior / seen.clamp(min=1e-8)).view(1, -1, 1, 1)
        return aligned / aligned.sum(dim=1, keepdim=True).clamp(min=1e-8)
