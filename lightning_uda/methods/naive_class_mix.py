"""Naive ClassMix: mixing within the target domain (the baseline of DACS's section 3.2; Olsson et al., WACV 2021)."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_uda.callbacks.alignment_prior import AlignmentPrior
from lightning_uda.inference import Inference, WholeImage
from lightning_uda.losses import cross_entropy, weighted_cross_entropy
from lightning_uda.methods.base import TeacherModule, to_float
from lightning_uda.metrics import Scoring
from lightning_uda.mixing import ClassMask, PasteMask, paste
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.optim import Poly, Schedule
from lightning_uda.pseudo_labels import BatchConfidence, DistributionAlignment, PixelWeighting, pseudo_label
from lightning_uda.resize import size_of
from lightning_uda.translation import StrongAugmentation, Translation


class NaiveClassMix(TeacherModule):
    """Pastes half of the classes that the teacher sees in a target image onto the next target image of the batch.

    No source pixel is mixed. In DACS's tables rare classes die out under it; "Distribution alignment" is the same with
    `alignment`.

    Args:
        network: The student; the teacher starts as its copy.
        label_space: Name or file of the label space; the CLI links it to the data module's.
        pixel_weighting: Weights of the target images' pixels; there are no pasted source pixels, so its `scope` has no
            effect.
        augmentation: What is done to mixed images before the student sees them; `null` leaves it out.
        paste_mask: Which pixels of a target image are pasted, chosen from its pseudo-labels.
        alignment: Rescales the teacher's probabilities before pseudo-labels are made; `null` leaves it out. Its prior
            comes from the callback `AlignmentPrior`, which the method brings.
        optimizer: Makes the optimiser from parameter groups.
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
        alignment: DistributionAlignment | None = None,
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
        self.alignment = copy.deepcopy(alignment)
        if self.alignment is not None:
            self.alignment.set_classes(network.num_classes)

    def configure_callbacks(self) -> list[Callback]:
        """Those of a teacher, and an `AlignmentPrior` for an alignment."""
        return [*super().configure_callbacks(), *([] if self.alignment is None else [AlignmentPrior()])]

    def training_step(self, batch: dict[str, dict[str, Tensor]], batch_idx: int) -> dict[str, Any]:
        """Source loss, and the loss of target images mixed with each other.

        Raises:
            ValueError: If the batch holds a single image, which has no other to be mixed with.
        """
        generator = self.step_generator(batch_idx)
        source_image, source_mask = to_float(batch["source"]["image"]), batch["source"]["mask"].long()
        target_image = to_float(batch["target"]["image"])
        if len(target_image) < 2:
            raise ValueError(
                "NaiveClassMix mixes target images with each other: found data.batch_size=1, set 2 or more."
            )

        loss_source = cross_entropy(self.student(source_image), source_mask)

        with torch.no_grad():
            logits = self.teacher(target_image)
            pseudo_labels, confidence = pseudo_label(logits, size_of(target_image), self.alignment)
            weights = self.pixel_weighting(confidence, torch.zeros_like(pseudo_labels, dtype=torch.bool))
            paste_mask = self.paste_mask(pseudo_labels, generator)
            mixed_image, mixed_mask, pixel_weights = (
                paste(tensor, tensor.roll(-1, dims=0), paste_mask) for tensor in (target_image, pseudo_labels, weights)
            )
            if self.augmentation is not None:
                mixed_image = self.augmentation(mixed_image, generator)

        loss_mixed = weighted_cross_entropy(self.student(mixed_image), mixed_mask, pixel_weights)
        loss = loss_source + loss_mixed

        self.log_step({"loss_source": loss_source, "loss_mixed": loss_mixed, "pixel_weight": pixel_weights.mean()})
        return {"loss": loss, "mixed": {"image": mixed_image, "mask": mixed_mask, "pixel_weights": pixel_weights}}
