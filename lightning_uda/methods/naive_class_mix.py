"""Naive ClassMix: mixing within the target domain (the baseline of DACS's section 3.2; Olsson et al., WACV 2021)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import Callback

from lightning_uda.callbacks.alignment_prior import AlignmentPrior
from lightning_uda.methods.teacher import TeacherModule
from lightning_uda.mixing import ClassMask, PasteMask, paste
from lightning_uda.pseudo_labels import BatchConfidence, DistributionAlignment, PixelWeighting
from lightning_uda.ranges import ranged
from lightning_uda.step import Labels, Step, to_float
from lightning_uda.translation import StrongAugmentation, Translation


class NaiveClassMix(TeacherModule):
    """Pastes half of the classes that the teacher sees in a target image onto the next target image of the batch.

    No source pixel is mixed. In DACS's tables rare classes die out under it; "Distribution alignment" is the same with
    `alignment`. A batch needs two images or more, as a single one has no other to be mixed with.

    Args:
        pixel_weighting: Weights of the target images' pixels; there are no pasted source pixels, so its `scope` has no
            effect.
        augmentation: What is done to mixed images before the student sees them; `null` leaves it out.
        paste_mask: Which pixels of a target image are pasted, chosen from its pseudo-labels.
        alignment: Rescales the teacher's probabilities before pseudo-labels are made; `null` leaves it out. Its prior
            comes from the callback `AlignmentPrior`, which the method brings.
        **common: As in `TeacherModule`.
    """

    streams = ("source", "target")
    views = ("source", "mixed", "mixed_weak")
    min_batch_size = 2

    @ranged()
    def __init__(
        self,
        *,
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        augmentation: Translation | None = StrongAugmentation(),
        paste_mask: PasteMask = ClassMask(),
        alignment: DistributionAlignment | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.pixel_weighting = pixel_weighting
        self.augmentation = augmentation
        self.paste_mask = paste_mask
        self.alignment = copy.deepcopy(alignment)
        if self.alignment is not None:
            self.alignment.set_classes(self.student.num_classes)

    def configure_callbacks(self) -> list[Callback]:
        """Those of a teacher, and an `AlignmentPrior` for an alignment."""
        return [*super().configure_callbacks(), *([] if self.alignment is None else [AlignmentPrior()])]

    def algorithm(self, step: Step) -> None:
        """Source loss, and the loss of target images mixed with each other."""
        source, target_image = step.batch["source"], to_float(step.batch["target"]["image"])
        step.learn("source", source["image"], Labels(source["mask"]))

        with torch.no_grad():
            pseudo_labels, confidence = self.pseudo_label(step, target_image, self.alignment)
            weights = self.pixel_weighting(confidence, torch.zeros_like(pseudo_labels, dtype=torch.bool))
            paste_mask = self.paste_mask(pseudo_labels, step.generator)
            plain, mask, weights = (
                paste(tensor, tensor.roll(-1, dims=0), paste_mask) for tensor in (target_image, pseudo_labels, weights)
            )
            image = step.translate(self.augmentation, plain, source["image"])

        step.learn("mixed", image, Labels(mask, weights, "all"), opacity=paste_mask)
        step.offer("mixed_weak", plain, opacity=paste_mask)
        step.log["lambda"] = weights.mean
