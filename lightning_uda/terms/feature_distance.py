"""Distance of features to those of the network as it was before training (DAFormer, Hoyer et al., CVPR 2022)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.precision import full_precision
from lightning_uda.ranges import CLASS_ID, SHARE, ranged
from lightning_uda.ranks import divisor
from lightning_uda.resize import Size, majority, size_of
from lightning_uda.step import Labels, Step, Term, to_float

THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
"""Train ids of traffic light, traffic sign and person to bicycle, of the 19 Cityscapes classes."""


class FeatureDistance(Term):
    """Keeps features of labelled images near those of the pretrained network ("thing-class feature distance", L_FD).

    The student as it is when the run is set up, ImageNet weights as a rule, is kept frozen, in eval mode, outside
    checkpoints. Cells of the last feature level count where one of `classes` fills most of them.

    Args:
        of: A labelled view.
        weight: Factor of the loss; 0.005 in DAFormer.
        classes: Train ids of the classes that count; the default is that of Cityscapes' 19 classes. `None` counts all
            cells, whatever they show.
        min_share: Least share (0-1) of a cell's pixels that its class has.
        distance: "l2", the length of the difference (DAFormer), or "cosine", 1 minus the cosine (VFM-UDA).

    Raises:
        ValueError: If the share isn't in [0, 1], or classes are no train ids.
    """

    needs_features = True

    @ranged(classes=CLASS_ID, min_share=SHARE)
    def __init__(
        self,
        of: str = "source",
        weight: float = 0.005,
        classes: Sequence[int] | None = THINGS,
        min_share: float = 0.75,
        distance: Literal["l2", "cosine"] = "l2",
    ) -> None:
        super().__init__(weight)
        self.of = of
        self.differentiates = self.reads = (of,)
        self.classes = None if classes is None else tuple(classes)
        self.min_share = min_share
        self.distance: Literal["l2", "cosine"] = distance
        self._reference: list[SegmentationNetwork] = []  # in a list, as a submodule would be trained and saved

    def prepare(self, network: SegmentationNetwork) -> None:
        """Keeps a frozen copy of the network.

        Raises:
            ValueError: If it doesn't have all of `classes`.
        """
        if self.classes is not None and max(self.classes, default=0) >= network.num_classes:
            raise ValueError(
                f"FeatureDistance: found classes={list(self.classes)}, but the network has {network.num_classes}; "
                "expected train ids of the label space. Give those of its things (light, sign, person, vehicles)."
            )
        self._reference = [copy.deepcopy(network).requires_grad_(False).eval()]

    def notes(self) -> list[str]:
        """A warning where the features to keep are those of random weights."""
        if not self._reference[0].random_weights:
            return []
        return [
            f"warning: the term {self.name!r} keeps features near those of random weights. Give the network pretrained "
            "ones (--model.network.weights FILE, or pretrained of its backbone), or leave the term out."
        ]

    def forward(self, step: Step) -> Tensor:
        """L_FD, a scalar."""
        view = self.view(step, self.of)
        features = step.levels(self.of)[-1]
        reference = self._reference[0]
        if next(reference.parameters()).device != features.device:
            reference.to(features.device)
        with torch.no_grad():
            expected = reference.encode(to_float(view.image))[-1]
            cells = self._cells(view.labels[0] if view.labels else None, size_of(features), step.student.num_classes)
        return feature_distance(features, expected, cells, self.distance)

    def _cells(self, labels: object, size: Size, num_classes: int) -> Tensor | None:
        if self.classes is None:
            return None
        if not isinstance(labels, Labels):
            raise ValueError(
                f"FeatureDistance: found no labels on the view {self.of!r}; expected a labelled view, usually source. "
                "Set `of` to one, or `classes` to null, which counts all cells."
            )
        return cells_of(labels.mask, size, self.classes, self.min_share, num_classes)


def cells_of(mask: Tensor, size: Size, classes: Sequence[int], min_share: float, num_classes: int) -> Tensor:
    """Cells of a grid over label maps that one of some classes fills for the most part.

    Args:
        mask: Train ids (N, H, W), of any integer type; 255 is a class of its own, which never counts.
        size: Height and width of the grid, at most those of the maps.
        classes: Train ids that count.
        min_share: Least share of a cell's pixels that its most frequent class has.
        num_classes: C.

    Returns:
        bool (N, *size).
    """
    found, share = majority(mask, size, num_classes)
    wanted = torch.zeros(num_classes + 1, dtype=torch.bool)
    wanted[list(classes)] = True
    return (share >= min_share) & wanted.to(mask.device, non_blocking=True)[found]


def feature_distance(
    features: Tensor, expected: Tensor, cells: Tensor | None = None, distance: Literal["l2", "cosine"] = "l2"
) -> Tensor:
    """Mean distance of features to others over cells.

    Args:
        features: (N, D, h, w).
        expected: Of the same shape; takes no gradient.
        cells: Those that count, bool (N, h, w); `None`: all.
        distance: "l2" or "cosine".

    Returns:
        Scalar, float32; 0 where no cell counts.
    """
    with full_precision(features.device):
        features, expected = features.float(), expected.detach().float()
        per_cell: Tensor
        if distance == "l2":
            per_cell = (features - expected).norm(dim=1)
        else:
            per_cell = 1 - F.cosine_similarity(features, expected, dim=1)
        counted = torch.ones_like(per_cell) if cells is None else cells
        return (per_cell * counted).sum() / divisor(counted.sum())
