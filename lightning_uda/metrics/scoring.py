"""What predictions are compared with: sizes of the labels, and classes that count as others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_uda.label_spaces import IGNORE_INDEX, LabelSpace
from lightning_uda.metrics.segmentation import merge_predictions


class Confusion(MulticlassConfusionMatrix):
    """Confusion matrix over all images, void left out; rows are ground truth.

    Args:
        num_classes: Number of classes C.
        merged: Predicted train id to the train id it counts as.
    """

    def __init__(self, num_classes: int, merged: Mapping[int, int] | None = None) -> None:
        super().__init__(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
        self.merged = dict(merged or {})

    def compute(self) -> Tensor:
        """Pixel counts, integer (C, C)."""
        return merge_predictions(super().compute(), self.merged)


class Scoring:
    """Protocol of an evaluation. Predictions are always scored at the size of the label files, as `val/miou`.

    Args:
        sizes: Further heights and widths at which predictions are scored, with labels resized (nearest).
            `[[512, 1024]]` is what DACS's tables do on Cityscapes; the mean there is logged as `val/miou_at_512x1024`.
        merged: Class predicted to class it counts as, by name. On NTHU, CBST has
            `{wall: building, fence: building, pole: building, truck: car, terrain: vegetation}`; the score of its
            protocol is then `val/miou_13`, where a prediction of any other class that is not scored is a miss.

    Raises:
        ValueError: If one of the sizes isn't a height and a width, or is given twice.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]] = (), merged: Mapping[str, str] | None = None) -> None:
        found = [tuple(size) for size in sizes]
        if any(len(size) != 2 or min(size) < 1 for size in found) or len(set(found)) != len(found):
            raise ValueError(
                f"Scoring: found sizes {found}; expected distinct pairs of height and width, such as [512, 1024]."
            )
        self.sizes = [(height, width) for height, width in found]
        self.merged = dict(merged or {})

    def new_confusion(self, label_space: LabelSpace) -> Confusion:
        """An empty matrix for the classes of a label space.

        Raises:
            ValueError: If `merged` names a class that isn't in it.
        """
        classes = label_space.classes
        if unknown := sorted({*self.merged, *self.merged.values()} - set(classes)):
            raise ValueError(
                f"Scoring: `merged` names {unknown}, expected classes of the label space {label_space.name!r}: "
                f"{list(classes)}."
            )
        merged = {classes.index(name): classes.index(counts_as) for name, counts_as in self.merged.items()}
        return Confusion(label_space.num_classes, merged)
