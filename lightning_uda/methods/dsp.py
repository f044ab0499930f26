"""DSP: Dual Soft-Paste for unsupervised domain adaptive semantic segmentation (Gao et al., ACM Multimedia 2021)."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_uda.callbacks.long_tail import LongTailStatistics
from lightning_uda.inference import Inference, WholeImage
from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.losses import (
    ConfidenceConsistency,
    Consistency,
    FeatureAlignment,
    SoftSegmentationLoss,
    cross_entropy,
)
from lightning_uda.methods.base import TeacherModule, to_float
from lightning_uda.metrics import Scoring
from lightning_uda.mixing import ClassMask, PasteMask, paste, paste_tail, soft_paste
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.optim import Poly, Schedule
from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting, pseudo_label
from lightning_uda.resize import size_of
from lightning_uda.translation import StrongAugmentation, Translation


class DSP(TeacherModule):
    """Pastes one patch of a source template softly onto both a source and a target image, and aligns their features.

    The patch holds half of the template's classes and, over them, long-tail classes from other source images. This is
    the paper's algorithm; both published programs have defects that disable its long-tail paste.

    Args:
        network: The student; the teacher starts as its copy.
        label_space: Name or file of the label space; the CLI links it to the data module's.
        beta: Opacity of the paste, 0-1; 1 is a hard paste.
        long_tail_k: Long-tail classes pasted per step; 0 pastes none.
        long_tail_classes: What they are drawn from: the number of least frequent source classes (K; 5 for GTA5, 4 for
            SYNTHIA), or their names, for the callback `LongTailStatistics` that the method brings.
        soft_segmentation: Loss of the mixed source images; its `reduction` differs between the two programs.
        consistency: Loss of the mixed target images: `ConfidenceConsistency`, `LiteralConsistency` (the paper's
            equation), `TwoTermConsistency` or `FirstTermConsistency` (both programs).
        feature_alignment: MMD between the mixed images; `null` leaves it out.
        pixel_weighting: lambda of target-origin pixels; its `scope` has no effect.
        augmentation: What is done to mixed images before the student sees them; `null` leaves it out. Hue is in
            radians, as in the library version that the program pins.
        paste_mask: Which pixels of a template are pasted.
        optimizer: Makes the optimiser from parameter groups. The paper says Nesterov, the programs have none.
        schedule: Learning-rate factor over the steps.
        inference: How images are put through the network at test time.
        evaluate: Which network validation, test and prediction run.
        seed: Key of the random numbers of training steps; the CLI links it to `seed_everything`.
        scoring: Sizes and classes that are scored beside the native ones.

    Raises:
        ValueError: If `beta` isn't in [0, 1] or `long_tail_k` is negative.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        label_space: str,
        beta: float = 0.8,
        long_tail_k: int = 2,
        long_tail_classes: int | list[str] = 5,
        soft_segmentation: SoftSegmentationLoss = SoftSegmentationLoss(),
        consistency: Consistency = ConfidenceConsistency(),
        feature_alignment: FeatureAlignment | None = FeatureAlignment(),
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        augmentation: Translation | None = StrongAugmentation(hue_unit="radians"),
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
        if not 0 <= beta <= 1 or long_tail_k < 0:
            raise ValueError(
                f"DSP: found beta={beta}, long_tail_k={long_tail_k}; expected an opacity in [0, 1] and a number of "
                "classes, at least 0."
            )
        self.streams = ("source", "template", "target", *(("tail",) if long_tail_k else ()))
        self.beta = float(beta)
        self.long_tail_k = long_tail_k
        self.long_tail_classes = long_tail_classes
        self.soft_segmentation = soft_segmentation
        self.consistency = consistency
        self.feature_alignment = copy.deepcopy(feature_alignment)
        if self.feature_alignment is not None:
            self.feature_alignment.set_features(network.feature_channels)
        self.pixel_weighting = pixel_weighting
        self.augmentation = augmentation
        self.paste_mask = paste_mask

    def configure_callbacks(self) -> list[Callback]:
        """Those of a teacher, and, for a long-tail paste, `LongTailStatistics` unless the trainer has one."""
        present = any(isinstance(callback, LongTailStatistics) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [*super().configure_callbacks(), *([] if present or not self.long_tail_k else [LongTailStatistics()])]

    def training_step(self, batch: dict[str, dict[str, Tensor]], batch_idx: int) -> dict[str, Any]:
        """Algorithm 1 of the paper; the student's batches are clean source, mixed target, mixed source."""
        generator = self.step_generator(batch_idx)
        source_image, source_mask = to_float(batch["source"]["image"]), batch["source"]["mask"].long()
        target_image = to_float(batch["target"]["image"])

        loss_source = cross_entropy(self.student(source_image), source_mask)

        with torch.no_grad():
            pseudo_labels, confidence = pseudo_label(self.teacher(target_image), size_of(target_image))
            patch_image, patch_mask, paste_mask = self.composite_patch(batch, generator)
            soft_mask = self.beta * paste_mask.float()
            images = torch.cat([soft_paste(patch_image, under, soft_mask) for under in (target_image, source_image)])
            if self.augmentation is not None:
                images = self.augmentation(images, generator)
            target_mixed, source_mixed = images.chunk(2)
            target_mixed_mask = paste(patch_mask, pseudo_labels, paste_mask)
            source_mixed_mask = paste(patch_mask, source_mask, paste_mask)
            pixel_weights = self.pixel_weighting(confidence, torch.zeros_like(paste_mask))

        target_logits, target_features = self.student.forward_features(target_mixed)
        source_logits, source_features = self.student.forward_features(source_mixed)
        losses = {
            "loss_source": loss_source,
            "loss_soft_segmentation": self.soft_segmentation(source_logits, source_mask, source_mixed_mask, self.beta),
            "loss_consistency": self.consistency(
                target_logits, target_mixed_mask, pseudo_labels, pixel_weights, paste_mask, self.beta
            ),
        }
        if self.feature_alignment is not None:
            losses["loss_feature"] = self.feature_alignment(source_features, target_features, soft_mask)

        self.log_step({**losses, "pixel_weight": pixel_weights.mean(), **self._tail_share(batch)})
        weights, pseudo_weights = self.consistency.weights(pixel_weights, paste_mask, self.beta)
        shown_weights = weights if pseudo_weights is None else weights + pseudo_weights
        mixed = {"image": target_mixed, "mask": target_mixed_mask, "pixel_weights": shown_weights}
        return {"loss": torch.stack(list(losses.values())).sum(), "mixed": mixed}

    def composite_patch(
        self, batch: dict[str, dict[str, Tensor]], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Templates with long-tail classes over them: image (N, 3, H, W), labels and paste mask (N, H, W)."""
        image, mask = batch["template"]["image"], batch["template"]["mask"]
        paste_mask = self.paste_mask(mask.long(), generator)
        if self.long_tail_k:
            image, mask, paste_mask = paste_tail(image, mask, paste_mask, batch["tail"]["image"], batch["tail"]["mask"])
        return to_float(image), mask.long(), paste_mask

    def _tail_share(self, batch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Long-tail classes really pasted (k, or less if tries ran out) and their share of the pixels, per image."""
        if not self.long_tail_k:
            return {}
        pasted = batch["tail"]["mask"] != IGNORE_INDEX
        classes = pasted.flatten(2).any(dim=2).float().sum(dim=1)
        return {"tail_classes": classes.mean(), "tail_pixels": pasted.any(dim=1).float().mean()}
