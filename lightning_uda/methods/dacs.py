"""DACS: Domain Adaptation via Cross-domain mixed Sampling (Tranheden et al., WACV 2021)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_uda.inference import Inference, WholeImage
from lightning_uda.losses import cross_entropy, weighted_cross_entropy
from lightning_uda.methods.base import TeacherModule, to_float
from lightning_uda.metrics import Scoring
from lightning_uda.mixing import ClassMask, PasteMask, paste
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.optim import Poly, Schedule
from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting, pseudo_label
from lightning_uda.resize import size_of
from lightning_uda.translation import StrongAugmentation, Translation


class DACS(TeacherModule):
    """Pastes half of the classes of a source image onto a target image, and learns from the mix.

    Labels of the mix are ground truth where it comes from the source, and the teacher's pseudo-labels where it comes
    from the target. Student and teacher see source, target and mixed images in batches of their own, both in train
    mode, as in the published program.

    Args:
        network: The student; the teacher starts as its copy.
        label_space: Name or file of the label space; the CLI links it to the data module's.
        pixel_weighting: Weights of the mixed image's pixels: `BatchConfidence` (the published program),
            `ImageConfidence`, `PixelConfidence` or `UniformWeights`; their `scope` says whether pasted pixels are
            scaled too.
        augmentation: What is done to mixed images before the student sees them; `null` leaves it out.
        paste_mask: Which pixels of a source image are pasted: `ClassMask` (half of its classes) or `BoxMask`.
        optimizer: Makes the optimiser from parameter groups. The paper says Nesterov, the program has none.
        schedule: Learning-rate factor over the steps.
        inference: How images are put through the network at test time.
        evaluate: Which network validation, test and prediction run.
        seed: Key of the random numbers of training steps; the CLI links it to `seed_everything`.
        scoring: Sizes and classes that are scored beside the native ones.
    """

    streams = ("source", "target")

    def __init__(
        self,
        network: SegmentationNetwork,
        label_space: str,
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        augmentation: Translation | None = StrongAugmentation(),
        paste_mask: PasteMask = ClassMask(),
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(
            params, lr=2.5e-4, momentum=0.9, weight_decay=5e-4
        ),
        schedule: Schedule = Poly(power=0.9),
        inference: Inference = WholeImage(),
        evaluate: Literal["student", "teacher"] = "student",
        seed: int = 0,
        scoring: Scoring = Scoring(),
    ) -> None:
        super().__init__(network, label_space, optimizer, schedule, inference, evaluate, seed, scoring)
        self.pixel_weighting = pixel_weighting
        self.augmentation = augmentation
        self.paste_mask = paste_mask

    def training_step(self, batch: dict[str, dict[str, Tensor]], batch_idx: int) -> dict[str, Any]:
        """Algorithm 1 of the paper, with the teacher of its program making the pseudo-labels."""
        generator = self.step_generator(batch_idx)
        source_image, source_mask = to_float(batch["source"]["image"]), batch["source"]["mask"].long()
        target_image = to_float(batch["target"]["image"])

        loss_source = cross_entropy(self.student(source_image), source_mask)

        with torch.no_grad():
            pseudo_labels, confidence = pseudo_label(self.teacher(target_image), size_of(target_image))
            paste_mask = self.paste_mask(source_mask, generator)
            mixed_image = to_float(paste(batch["source"]["image"], batch["target"]["image"], paste_mask))
            if self.augmentation is not None:
                mixed_image = self.augmentation(mixed_image, generator)
            mixed_mask = paste(batch["source"]["mask"], pseudo_labels.byte(), paste_mask).long()
            pixel_weights = self.pixel_weighting(confidence, paste_mask)

        loss_mixed = weighted_cross_entropy(self.student(mixed_image), mixed_mask, pixel_weights)
        loss = loss_source + loss_mixed

        self.log_step({"loss_source": loss_source, "loss_mixed": loss_mixed, "pixel_weight": pixel_weights.mean()})
        return {"loss": loss, "mixed": {"image": mixed_image, "mask": mixed_mask, "pixel_weights": pixel_weights}}
