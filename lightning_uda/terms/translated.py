"""Labelled images in the look of others: Fourier domain adaptation (FDA, Yang & Soatto, CVPR 2020) and its like."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_uda.ranges import ranged
from lightning_uda.step import Step, Term, to_float
from lightning_uda.translation import FourierTranslation, Translation


class Translated(Term):
    """Cross-entropy of labelled images that are translated, as a rule into the style of the target's.

    The student sees them beside those as they are. Any method takes it, those without target images with
    `style: source`.

    Args:
        of: The view whose images are translated and whose labels are taught; `source_weak` for EHTDI.
        style: The view whose images give the style; `target_weak` for EHTDI. If it is `of` itself, images take
            that of the batch's next one.
        translation: What makes the other look.
        weight: Factor of the loss.
    """

    @ranged()
    def __init__(
        self,
        of: str = "source",
        style: str = "target",
        translation: Translation = FourierTranslation(),
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.of = of
        self.style = style
        self.translation = translation
        self.reads = (of, style)

    def forward(self, step: Step) -> Tensor:
        """The sum over classifiers and kinds of labels, a scalar.

        Raises:
            ValueError: If a view isn't there, or the first has no labels.
        """
        view = self.view(step, self.of)
        if not view.labels:
            raise ValueError(
                f"Translated: found no labels on the view {self.of!r}; expected a labelled view. Set `of` to one, "
                "usually source."
            )
        with torch.no_grad():
            style = view.image.roll(-1, dims=0) if self.style == self.of else self.view(step, self.style).image
            image = self.translation(to_float(view.image), step.generator, style)
        return step.cost(step.look(self.name, image, *view.labels))
