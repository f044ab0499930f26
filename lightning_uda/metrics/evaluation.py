"""What an evaluation measured, derived from its confusion matrix alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan

from torch import Tensor

from lightning_uda.label_spaces import LabelSpace
from lightning_uda.metrics.columns import in_scope, iou_column, mean_column, score_label
from lightning_uda.metrics.segmentation import iou_per_class, mean_iou
from lightning_uda.tables import percent

MIOU_NOTE = "mIoU as in the official Cityscapes evaluator: a predicted class without a pixel in the labels counts as 0."
"""Footnote of tables: what the mean is."""


@dataclass(frozen=True)
class Evaluation:
    """What one confusion matrix says; all values are in percent, NaN where there is nothing to measure.

    Attributes:
        label_space: The classes.
        iou: IoU of each class.
        share: Share of each class in the ground-truth pixels.
        means: Mean IoU over all classes as `miou`, and over each subset as `miou_<subset>`; classes in neither labels
            nor predictions are left out.
        scope: Which pixels are counted, such as "at_512x1024"; `None` for all at the size of the labels.
    """

    label_space: LabelSpace
    iou: list[float]
    share: list[float]
    means: dict[str, float]
    scope: str | None = None

    def lacking(self, stage: str) -> str:
        """A warning of the classes that no label of the set has, if there are any and others have; else empty."""
        names = [name for name, share in zip(self.label_space.classes, self.share, strict=True) if share == 0]
        if not names:
            return ""
        return (
            f"No pixel of the {'validation' if stage == 'val' else stage} images is {', '.join(names)}: the scores say "
            "nothing of what has no pixel, but count it as 0 where it is predicted."
        )

    def columns(self) -> dict[str, float]:
        """The means, then `iou_<class name>` for each class; all with `_<scope>` if there is a scope."""
        classes = {iou_column(name): value for name, value in zip(self.label_space.classes, self.iou, strict=True)}
        return {in_scope(name, self.scope): value for name, value in (self.means | classes).items()}

    def summary(self) -> str:
        """The means in one line, such as `mIoU 31.2  mIoU (13) 40.1`."""
        return "  ".join(
            f"{score_label(in_scope(name, self.scope))} {percent(value)}" for name, value in self.means.items()
        )


def evaluate(confusion: Tensor, label_space: LabelSpace, scope: str | None = None) -> Evaluation:
    """Derives everything from one matrix.

    Args:
        confusion: Integer (C, C); rows are ground truth, columns predictions.
        label_space: Its C classes.
        scope: Which pixels are counted, such as "at_512x1024"; `None` for all at the size of the labels.
    """
    iou = 100 * iou_per_class(confusion)
    truth = confusion.cpu().double().sum(dim=1)
    means = {mean_column(subset): float(mean_iou(iou, indices)) for subset, indices in averaged(label_space).items()}
    return Evaluation(label_space, iou.tolist(), (100 * truth / truth.sum()).tolist(), means, scope)


def averaged(label_space: LabelSpace) -> dict[str | None, list[int] | None]:
    """Train ids that means are taken over: all (`None`: `None`), then those of each subset."""
    return {None: None, **{subset: label_space.subset_indices(subset) for subset in label_space.subsets}}


def columns_of(evaluations: Iterable[Evaluation]) -> dict[str, float]:
    """Columns of the evaluations of one step in all scopes, as `iou.csv` has them."""
    return {name: value for evaluation in evaluations for name, value in evaluation.columns().items()}


def best_of(scores: Iterable[tuple[int, float]]) -> tuple[int, float] | None:
    """Step and value of the highest score, the first of equals; `None` if none is a number.

    Which step that is only labels of the target can tell, so it is no result of the protocol.
    """
    return max((score for score in scores if not isnan(score[1])), key=lambda score: score[1], default=None)


def best_text(step: int, value: float) -> str:
    """How a best score is reported: "41.7 at step 200; that choice uses target labels"."""
    return f"{percent(value)} at step {step}; that choice uses target labels"
