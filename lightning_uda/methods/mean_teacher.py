"""Mean teacher (Tarvainen & Valpola, NeurIPS 2017) with pseudo-labels, as DACS's and DSP's tables define the row."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_uda.inference import Inference, WholeImage
from lightning_uda.losses import cross_entropy, weighted_cross_entropy
from lightning_uda.methods.base import TeacherModule, to_float
from lightning_uda.metrics import Scoring
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.optim import Poly, Schedule
from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting, pseudo_label
from lightning_uda.resize import size_of
from lightning_uda.translation import StrongAugmentation, Translation


class MeanTeacher(TeacherModule):
    """Learns from the teacher's pseudo-labels of target images, without mixing.

    One algorithm with two names: "Pseudo-labelling" (no mixing) in DACS's ablation, "+ Mean Teacher" in DSP's.

    Args:
        network: The student; the teacher starts as its copy.
        label_space: Name or file of the label space; the CLI links it to the data module's.
        pixel_weighting: Weights of the target image's pixels.
        augmentation: What is done to target images before the student sees them; `null` leaves it out.
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

    def training_step(self, batch: dict[str, dict[str, Tensor]], batch_idx: int) -> dict[str, Any]:
        """Source loss, and the loss of augmented target images on the teacher's pseudo-labels of the clean ones."""
        generator = self.step_generator(batch_idx)
        source_image, source_mask = to_float(batch["source"]["image"]), batch["source"]["mask"].long()
        target_image = to_float(batch["target"]["image"])

        loss_source = cross_entropy(self.student(source_image), source_mask)

        with torch.no_grad():
            pseudo_labels, confidence = pseudo_label(self.teacher(target_image), size_of(target_image))
            if self.augmentation is not None:
                target_image = self.augmentation(target_image, generator)
            pixel_weights = self.pixel_weighting(confidence, torch.zeros_like(pseudo_labels, dtype=torch.bool))

        loss_target = weighted_cross_entropy(self.student(target_image), pseudo_labels, pixel_weights)
        loss = loss_source + loss_target

        self.log_step({"loss_source": loss_source, "loss_target": loss_target, "pixel_weight": pixel_weights.mean()})
        return {"loss": loss, "mixed": {"image": target_image, "mask": pseudo_labels, "pixel_weights": pixel_weights}}
