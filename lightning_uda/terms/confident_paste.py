"""HTCM: confident target pixels are pasted into the source image (EHTDI, Li et al., ACM Multimedia 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_uda.mixing import paste
from lightning_uda.ranges import SHARE, ranged
from lightning_uda.resize import size_of, upsample
from lightning_uda.step import Labels, Step, Term, View, to_float


class ConfidentPaste(Term):
    """Cross-entropy of source images into which the student's confident pixels of another view are pasted (L_hts).

    Pasted pixels carry the student's prediction as their label, the others the ground truth. The mean is over the valid
    pixels; the main classifier alone is taught. The share of pasted pixels is logged as `train/<name>_pixels`.

    Args:
        of: The view that the student's prediction is taken from. It is shown to the student if it hasn't been.
        image: The view whose pixels are pasted; `None` takes those of `of`.
        onto: The labelled view that is pasted into.
        tau: Confidence above which a pixel is pasted (strictly, so that 0 pastes every pixel), 0-1.
        weight: Factor of the loss; lambda_1 = 0.1 in EHTDI.
        pasted_before: What becomes of pixels that `image` itself has from a source image: "predicted", the same as of
            all others (EHTDI's program); "truth", they are pasted where they are confident, but carry the ground
            truth; "united", all of them are pasted and carry it (its authors' later program).
        images: "all" images of the batch are taught, or the "first" alone (EHTDI's program, by an oversight).
        unjittered: Names of two views, the unjittered forms of `image` and `onto`: the same paste of them is offered to
            other terms as view `<name>_weak`.

    Raises:
        ValueError: If tau isn't in [0, 1].
    """

    @ranged(tau=SHARE)
    def __init__(
        self,
        of: str = "mixed",
        image: str | None = None,
        onto: str = "source",
        tau: float = 0.95,
        weight: float = 0.1,
        pasted_before: Literal["predicted", "truth", "united"] = "predicted",
        images: Literal["all", "first"] = "all",
        unjittered: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(weight)
        self.of = of
        self.image = of if image is None else image
        self.onto = onto
        self.tau = tau
        self.pasted_before = pasted_before
        self.images = images
        self.unjittered = unjittered
        self.reads = (self.of, self.image, onto, *(unjittered or ()))

    def forward(self, step: Step) -> Tensor:
        """L_hts, a scalar."""
        pasted, base = self.view(step, self.image), self.view(step, self.onto)
        truth = self._truth(base)
        with torch.no_grad():
            self.view(step, self.of)
            predicted, confidence = step.prediction(self.of)
            chosen = confidence > self.tau
            if self.pasted_before != "predicted":
                before, taught = self._pasted_before(pasted)
                predicted = paste(taught, predicted, before)
                chosen = chosen | before if self.pasted_before == "united" else chosen
            labels = Labels(paste(predicted, truth, chosen))
            image = paste(to_float(pasted.image), to_float(base.image), chosen)
        if self.unjittered is not None:
            top, under = (to_float(self.view(step, name).image) for name in self.unjittered)
            step.offer(f"{self.name}_weak", paste(top, under, chosen), labels)
        step.log[f"{self.name}_pixels"] = chosen.float().mean
        logits = step.look(self.name, image, labels).logits
        if self.images == "first":
            logits, labels = logits[:1], Labels(labels.mask[:1])
        return labels.loss(upsample(logits, size_of(image), step.student.align_corners).log_softmax(dim=1))

    def _truth(self, base: View) -> Tensor:
        """Labels of the images that are pasted into.

        Raises:
            ValueError: If they aren't one class for each pixel, all of the same weight.
        """
        labels = base.labels[0] if len(base.labels) == 1 else None
        if not isinstance(labels, Labels) or isinstance(labels.weights, Tensor) or labels.weights != 1:
            raise ValueError(
                f"ConfidentPaste: found {len(base.labels)} kinds of labels, or weighted or soft ones, on the view "
                f"{self.onto!r}; expected the ground truth of one class for each pixel. Set `onto` to such a view, "
                "usually source."
            )
        return labels.mask

    def _pasted_before(self, view: View) -> tuple[Tensor, Tensor]:
        """Pixels that a view has from a source image, bool (N, H, W), and its labels, int64 (N, H, W).

        Raises:
            ValueError: If nothing was pasted into it, or it has no labels.
        """
        labels = view.labels[0] if view.labels else None
        if view.opacity is None or not isinstance(labels, Labels):
            raise ValueError(
                f"ConfidentPaste: found pasted_before={self.pasted_before!r}, but nothing was pasted into the view "
                f"{self.image!r}, or it has no labels. Set `image` to a mix, or pasted_before to predicted."
            )
        return view.opacity > 0, labels.mask.long()
