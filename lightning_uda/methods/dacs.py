"""DACS: Domain Adaptation via Cross-domain mixed Sampling (Tranheden et al., WACV 2021)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from lightning_uda.methods.teacher import TeacherModule
from lightning_uda.mixing import ClassMask, PasteMask, paste
from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting, unpasted_mean
from lightning_uda.ranges import ranged
from lightning_uda.step import Labels, Step, to_float
from lightning_uda.translation import StrongAugmentation, Translation


class DACS(TeacherModule):
    """Pastes half of the classes of a source image onto a target image, and learns from the mix.

    Labels of the mix are ground truth where it comes from the source, and the teacher's pseudo-labels where it comes
    from the target. Student and teacher see source, target and mixed images in batches of their own, both in train
    mode, as in the published program. The paper's optimiser has Nesterov momentum, the program's has none.

    Args:
        pixel_weighting: Weights of the mixed image's pixels: `BatchConfidence` (the published program),
            `ImageConfidence`, `PixelConfidence` or `UniformWeights`; their `scope` says whether pasted pixels are
            scaled too.
        augmentation: What is done to mixed images before the student sees them; `null` leaves it out.
        paste_mask: Which pixels of a source image are pasted: `ClassMask` (half of its classes) or `BoxMask`.
        **common: As in `TeacherModule`.
    """

    streams = ("source", "target")
    views = ("source", "mixed", "mixed_weak", "target")
    mixes_streams = True

    @ranged()
    def __init__(
        self,
        *,
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        augmentation: Translation | None = StrongAugmentation(),
        paste_mask: PasteMask = ClassMask(),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.pixel_weighting = pixel_weighting
        self.augmentation = augmentation
        self.paste_mask = paste_mask

    def algorithm(self, step: Step) -> None:
        """Algorithm 1 of the paper, with the teacher of its program making the pseudo-labels."""
        source, target = step.batch["source"], step.batch["target"]
        step.learn("source", source["image"], Labels(source["mask"]))

        with torch.no_grad():
            pseudo_labels, confidence = self.pseudo_label(step, target["image"])
            paste_mask = self.paste_mask(source["mask"], step.generator)
            plain = to_float(paste(source["image"], target["image"], paste_mask))
            image = step.translate(self.augmentation, plain)
            mask = paste(source["mask"], pseudo_labels, paste_mask)
            weights = self.pixel_weighting(confidence, paste_mask)

        step.learn("mixed", image, Labels(mask, weights, "all"), opacity=paste_mask)
        step.offer("mixed_weak", plain, opacity=paste_mask)
        step.offer("target", target["image"], Labels(pseudo_labels), confidence=confidence)
        step.log["lambda"] = partial(unpasted_mean, weights, paste_mask)
