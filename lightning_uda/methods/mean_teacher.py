"""Mean teacher (Tarvainen & Valpola, NeurIPS 2017) with pseudo-labels, as DACS's and DSP's tables define the row."""

from __future__ import annotations

from typing import Any

import torch

from lightning_uda.methods.teacher import TeacherModule
from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting
from lightning_uda.ranges import ranged
from lightning_uda.step import Labels, Step, to_float
from lightning_uda.translation import StrongAugmentation, Translation


class MeanTeacher(TeacherModule):
    """Learns from the teacher's pseudo-labels of target images, without mixing.

    One algorithm with two names: "Pseudo-labelling" (no mixing) in DACS's ablation, "+ Mean Teacher" in DSP's.

    Args:
        pixel_weighting: Weights of the target image's pixels.
        augmentation: What is done to target images before the student sees them; `null` leaves it out.
        **common: As in `TeacherModule`.
    """

    streams = ("source", "target")
    views = ("source", "target", "target_weak")

    @ranged()
    def __init__(
        self,
        *,
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        augmentation: Translation | None = StrongAugmentation(),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.pixel_weighting = pixel_weighting
        self.augmentation = augmentation

    def algorithm(self, step: Step) -> None:
        """Source loss, and the loss of augmented target images on the teacher's pseudo-labels of the clean ones."""
        source, target_image = step.batch["source"], to_float(step.batch["target"]["image"])
        step.learn("source", source["image"], Labels(source["mask"]))

        with torch.no_grad():
            pseudo_labels, confidence = self.pseudo_label(step, target_image)
            image = step.translate(self.augmentation, target_image, source["image"])
            weights = self.pixel_weighting(confidence, torch.zeros_like(pseudo_labels, dtype=torch.bool))

        step.learn("target", image, Labels(pseudo_labels, weights, "all"))
        step.offer("target_weak", target_image)
        step.log["lambda"] = weights.mean
