"""DAFormer: how its paper trains (Hoyer et al., CVPR 2022); its networks are configs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.methods.teacher import TeacherModule
from lightning_uda.mixing import ClassMask, PasteMask, paste
from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting, unpasted_mean
from lightning_uda.ranges import COUNT_OR_NONE, ranged
from lightning_uda.step import Labels, Step, to_float
from lightning_uda.terms import FeatureDistance
from lightning_uda.translation import StrongAugmentation, Translation


class DAFormer(TeacherModule):
    """DACS with what makes transformers adapt: features kept near ImageNet's, and losses over all pixels.

    Differences from DACS: pasted classes are half of those of the whole batch; the mean of both losses is over all
    pixels, void ones too; rows of the target image where the camera's rectification and the own car lie have no
    weight; the jitter is weaker. The teacher stays in train mode, but without dropout and drop-path. Rare class
    sampling is the data's (`--data.source_sampling RareClass`), the warm-up of the rate the schedule's.

    Args:
        pixel_weighting: Weights of the mixed image's pixels that come from the target.
        ignore_top: Rows of the target crop without weight at its upper border: 15 for crops that span Cityscapes
            frames of 512 rows, 30 of 1024 (HRDA).
        ignore_bottom: At its lower border: 120, or 240 (HRDA).
        feature_distance: Distance to ImageNet features on source images; `null` leaves it out.
        augmentation: What is done to mixed images before the student sees them; `null` leaves it out.
        paste_mask: Which pixels of a source image are pasted.
        **common: As in `TeacherModule`.

    Raises:
        ValueError: If a number of rows is negative.
    """

    streams = ("source", "target")
    views: Sequence[str] = ("source", "mixed", "mixed_weak", "target")
    mixes_streams = True

    @ranged(ignore_top=COUNT_OR_NONE, ignore_bottom=COUNT_OR_NONE)
    def __init__(
        self,
        *,
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        ignore_top: int = 15,
        ignore_bottom: int = 120,
        feature_distance: FeatureDistance | None = FeatureDistance(),
        augmentation: Translation | None = StrongAugmentation(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2),
        paste_mask: PasteMask = ClassMask(of_batch=True),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.teacher.make_deterministic()
        self.pixel_weighting = pixel_weighting
        self.ignore_top = ignore_top
        self.ignore_bottom = ignore_bottom
        self.augmentation = augmentation
        self.paste_mask = paste_mask
        self.add_term("feature_distance", feature_distance)

    def configure_callbacks(self) -> list[Callback]:
        """An `EMATeacher` of decay 0.999, unless the trainer has one already."""
        return [] if self.has_callback(EMATeacher) else [EMATeacher(decay=0.999)]

    def algorithm(self, step: Step) -> None:
        """A step of DAFormer's program, but for the feature distance, a term."""
        source = step.batch["source"]
        step.learn("source", source["image"], Labels(source["mask"], over="all"))
        self.learn_mixed(step)

    def learn_mixed(self, step: Step) -> None:
        """Pastes half of the source's classes onto target images, which the teacher labels, and learns from the mix."""
        source, target = step.batch["source"], step.batch["target"]
        with torch.no_grad():
            pseudo_labels, confidence = self.pseudo_label(step, target["image"])
            target_weights = self.target_weights(pseudo_labels, confidence)
            paste_mask = self.paste_mask(source["mask"], step.generator)
            plain = to_float(paste(source["image"], target["image"], paste_mask))
            mask = paste(source["mask"], pseudo_labels, paste_mask)
            weights = paste(torch.ones_like(target_weights), target_weights, paste_mask)

        step.learn("mixed", step.translate(self.augmentation, plain), Labels(mask, weights, "all"), opacity=paste_mask)
        step.offer("mixed_weak", plain, opacity=paste_mask)
        valid = Labels(pseudo_labels, self.valid_rows(confidence))
        step.offer("target", target["image"], valid, confidence=confidence)
        step.log["lambda"] = partial(unpasted_mean, weights, paste_mask)

    def target_weights(self, pseudo_labels: Tensor, confidence: Tensor) -> Tensor:
        """Weights of the target's pixels, float32 (N, H, W), by the teacher's confidence in them and their rows.

        Args:
            pseudo_labels: The teacher's labels, int64 (N, H, W).
            confidence: Its confidence in them, float32 (N, H, W).
        """
        nothing_pasted = torch.zeros_like(confidence, dtype=torch.bool)
        return self.pixel_weighting(confidence, nothing_pasted) * self.valid_rows(confidence)

    def valid_rows(self, confidence: Tensor) -> Tensor:
        """1 on the rows of the target that count and 0 on the others, (N, H, W) as the confidence."""
        valid = torch.ones_like(confidence)
        valid[:, : self.ignore_top] = 0
        valid[:, max(0, valid.shape[1] - self.ignore_bottom) :] = 0
        return valid
