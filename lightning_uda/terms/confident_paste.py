"""HTCM: confident pixels of a view are pasted into the source image (EHTDI, Chen et al., ACM Multimedia 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_uda.mixing import paste
from lightning_uda.pseudo_labels import pseudo_label
from lightning_uda.resize import size_of, upsample
from lightning_uda.step import Labels, Step, Term, View, to_float


def confident_pixels(
    logits: Tensor, size: tuple[int, int], tau: float, align_corners: bool = True
) -> tuple[Tensor, Tensor]:
    """Predicted labels, and where their probability is above tau (strictly, so that tau = 0 takes every pixel).

    Args:
        logits: (N, C, h, w); upsampled before the softmax.
        size: Height and width of the image.
        tau: Threshold, 0-1.
        align_corners: How logits are upsampled, as the network declares it.

    Returns:
        Labels, int64 (N, *size), and the confident pixels, bool (N, *size).
    """
    labels, confidence = pseudo_label(logits, size, align_corners=align_corners)
    return labels, confidence > tau


class ConfidentPaste(Term):
    """Cross-entropy of source images into which the student's confident pixels of another view are pasted (L_hts).

    Pasted pixels carry the student's prediction as their label, the others the ground truth. The mean is over the valid
    pixels of all images of the batch; the main classifier alone is taught.

    Args:
        of: The view that the student's prediction is taken from.
        image: The view whose pixels are pasted; `None` takes those of `of`.
        onto: The labelled view that is pasted into.
        tau: Confidence above which a pixel is pasted, 0-1.
        weight: Factor of the loss; lambda_1 = 0.1 in EHTDI.

    Raises:
        ValueError: If tau isn't in [0, 1].
    """

    def __init__(
        self, of: str = "mixed", image: str | None = None, onto: str = "source", tau: float = 0.95, weight: float = 0.1
    ) -> None:
        super().__init__(weight)
        if not 0 <= tau <= 1:
            raise ValueError(f"ConfidentPaste: found tau={tau}; expected a probability in [0, 1].")
        self.of = of
        self.image = of if image is None else image
        self.onto = onto
        self.tau = tau

    def forward(self, step: Step) -> Tensor:
        """L_hts, a scalar."""
        seen, pasted, base = (self.view(step, name) for name in (self.of, self.image, self.onto))
        mask = self._truth(base)
        size = size_of(mask)
        with torch.no_grad():
            labels, confident = confident_pixels(seen.logits, size, self.tau, step.student.align_corners)
            image = paste(to_float(pasted.image), to_float(base.image), confident)
            mask = paste(labels, mask, confident)
        view = step.look(self.name, image)
        return Labels(mask).loss(upsample(view.logits, size, step.student.align_corners).log_softmax(dim=1))

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
