"""What predictions are compared with: sizes of the labels, pixels near borders, classes that count as others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_uda.label_spaces import IGNORE_INDEX, LabelSpace
from lightning_uda.metrics.borders import near_borders
from lightning_uda.metrics.columns import border_scopes, size_scope
from lightning_uda.metrics.segmentation import image_mious, merge_predictions
from lightning_uda.ranges import SIDE, ranged
from lightning_uda.resize import resize_labels


class Confusion(MulticlassConfusionMatrix):
    """Confusion matrix over all images, void left out; rows are ground truth.

    Args:
        num_classes: Number of classes C.
        merged: Predicted train id to the train id it counts as.
    """

    def __init__(self, num_classes: int, merged: Mapping[int, int] | None = None) -> None:
        super().__init__(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
        self.merged = dict(merged or {})
        self._batch: Tensor | None = None

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch; the matrix of each of its images is counted, and their sum added.

        Args:
            preds: Predicted train ids in 0..C-1, integer (N, ...).
            target: Labels of the same shape; C and more, such as 255, is void.
        """
        images, classes = len(preds), self.num_classes
        void = classes**2  # the cell of an image's void pixels: after its others, as a void label is C or more
        cells = torch.add(preds.flatten(1).int(), target.flatten(1).int(), alpha=classes).clamp_(max=void)
        cells += torch.arange(images, dtype=torch.int32, device=cells.device).unsqueeze(1) * (void + 1)
        counts = torch.bincount(cells.flatten(), minlength=images * (void + 1))  # torchmetrics counts no single images
        self._batch = counts.view(images, void + 1)[:, :void].view(images, classes, classes)
        self.confmat += self._batch.sum(dim=0)

    def batch_mious(self) -> Tensor:
        """Mean IoU of each image of the last batch, as `image_mious` counts it, on the device."""
        if self._batch is None:
            raise RuntimeError("Confusion: found no batch; expected `update` before `batch_mious`.")
        return image_mious(merge_predictions(self._batch, self.merged))

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
        border: Distance from class borders, in pixels of the labels; `null` leaves it out. Pixels within that distance
            of another class (see `near_borders`) and those beyond it are scored apart, at the size of the labels only:
            with 3 as `val/miou_within_3px_of_borders` and `val/miou_beyond_3px_of_borders`.

    Raises:
        ValueError: If one of the sizes isn't a height and a width, or is given twice; if the distance is below 1.
    """

    @ranged(sizes=SIDE, border=SIDE)
    def __init__(
        self,
        sizes: Sequence[tuple[int, int]] = (),
        merged: Mapping[str, str] | None = None,
        border: int | None = None,
    ) -> None:
        found = [tuple(size) for size in sizes]
        if any(len(size) != 2 for size in found) or len(set(found)) != len(found):
            raise ValueError(
                f"Scoring: found sizes {found}; expected distinct pairs of height and width, such as [512, 1024]."
            )
        self.sizes = [(height, width) for height, width in found]
        self.merged = dict(merged or {})
        self.border = border

    @property
    def scopes(self) -> list[str]:
        """Scopes beside that of all pixels at the size of the labels, in the order of `labels`."""
        return [*map(size_scope, self.sizes), *(border_scopes(self.border) if self.border else ())]

    def labels(self, mask: Tensor) -> Iterator[tuple[str | None, Tensor]]:
        """Labels of each scope, which predictions of their size are compared with.

        Args:
            mask: Labels of any integer type, (N, H, W).

        Yields:
            The scope, and its labels with void where it doesn't count: the mask itself (`None`), then the others.
        """
        yield None, mask
        for size in self.sizes:
            yield size_scope(size), resize_labels(mask, size)
        if self.border:
            near = near_borders(mask, self.border)
            for scope, left_out in zip(border_scopes(self.border), (~near, near), strict=True):
                yield scope, mask.masked_fill(left_out, IGNORE_INDEX)

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
