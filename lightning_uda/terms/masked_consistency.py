"""MIC: masked image consistency (Hoyer et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting
from lightning_uda.ranges import SHARE, SIDE, ranged
from lightning_uda.resize import Size, size_of
from lightning_uda.step import Labels, Step, Term, to_float
from lightning_uda.translation import StrongAugmentation, Translation


class MaskedConsistency(Term):
    """Cross-entropy of target images of which random squares are hidden, on the teacher's labels of the whole images.

    The context has to tell what the squares hide. All classifiers of the network are taught, and hidden pixels count
    as much as others; the mean is over all pixels. Hidden pixels have the mean colour of the network's normalisation.
    Any method that offers a view with a teacher's labels and confidence takes it: DACS, DSP, DAFormer ("target").

    Args:
        of: The view.
        patch: Side of the squares in pixels; 64 in the paper, for crops of 512 and of 1024.
        ratio: Share of the squares that are hidden, each by chance, 0-1.
        weight: lambda_M, factor of the loss.
        pixel_weighting: Weights of the pixels by the teacher's confidence.
        augmentation: What is done to images before they are masked; `null` leaves it out.

    Raises:
        ValueError: If the side is below 1 or the ratio isn't in [0, 1].
    """

    @ranged(patch=SIDE, ratio=SHARE)
    def __init__(
        self,
        of: str = "target",
        patch: int = 64,
        ratio: float = 0.7,
        weight: float = 1.0,
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        augmentation: Translation | None = StrongAugmentation(),
    ) -> None:
        super().__init__(weight)
        self.of = of
        self.reads = (of,)
        self.patch = patch
        self.ratio = ratio
        self.pixel_weighting = pixel_weighting
        self.augmentation = augmentation

    def forward(self, step: Step) -> Tensor:
        """L_M, a scalar.

        Raises:
            ValueError: If the view has no labels of a teacher.
        """
        view = self.view(step, self.of)
        labels = view.labels[0] if view.labels else None
        if view.confidence is None or not isinstance(labels, Labels):
            raise ValueError(
                f"MaskedConsistency: found no labels of a teacher on the view {self.of!r}; expected a method that "
                "offers them, such as DACS, DSP or DAFormer."
            )
        with torch.no_grad():
            image = step.translate(self.augmentation, to_float(view.image))
            hidden = hidden_squares(len(image), size_of(image), self.patch, self.ratio, step.generator)
            colour = step.student.normalization.mean_colour.to(image)
            image = torch.where(hidden.to(image.device, non_blocking=True).unsqueeze(1), colour, image)
            weights = self.pixel_weighting(view.confidence, torch.zeros_like(labels.mask, dtype=torch.bool))
            if isinstance(labels.weights, Tensor):
                weights = weights * labels.weights
        return step.cost(step.look(self.name, image, replace(labels, weights=weights, over="all")))


def hidden_squares(count: int, size: Size, patch: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Pixels that random squares of a grid hide.

    Args:
        count: Number of images, N.
        size: Height and width of the images.
        patch: Side of the squares; those at the right and lower border may be cut off.
        ratio: Probability of each to be hidden.
        generator: Source of randomness, on the CPU.

    Returns:
        bool (N, *size), on the CPU.
    """
    rows, columns = (ceil(side / patch) for side in size)
    hidden = torch.rand(count, rows, columns, generator=generator, dtype=torch.float32) < ratio
    whole = hidden.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)
    return whole[:, : size[0], : size[1]]
