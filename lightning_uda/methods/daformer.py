"""DAFormer: how its paper trains (Hoyer et al., CVPR 2022); its networks are configs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.data.margins import VALID
from lightning_uda.methods.teacher import TeacherModule
from lightning_uda.mixing import ClassMask, PasteMask, paste
from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting, unpasted_mean
from lightning_uda.ranges import ranged
from lightning_uda.step import Labels, Step, to_float
from lightning_uda.terms import FeatureDistance
from lightning_uda.translation import StrongAugmentation, Translation


class DAFormer(TeacherModule):
    """DACS with what makes transformers adapt: features kept near ImageNet's, and losses over all pixels.

    Differences from DACS: pasted classes are half of those of the whole batch; the mean of both losses is over all
    pixels, void ones too; pixels of the target where the camera's rectification and the own car lie have no weight; the
    jitter is weaker. The teacher stays in train mode, but without dropout and drop-path. Those pixels are the data's to
    name (`--data.target_margins`), as is rare class sampling (`--data.source_sampling RareClass`), and the warm-up of
    the rate is the schedule's.

    Args:
        pixel_weighting: Weights of the mixed image's pixels that come from the target.
        feature_distance: Distance to ImageNet features on source images; `null` leaves it out.
        augmentation: What is done to mixed images before the student sees them; `null` leaves it out.
        paste_mask: Which pixels of a source image are pasted.
        **common: As in `TeacherModule`.
    """

    streams = ("source", "target")
    views: Sequence[str] = ("source", "mixed", "mixed_weak", "target")
    mixes_streams = True

    @ranged()
    def __init__(
        self,
        *,
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        feature_distance: FeatureDistance | None = FeatureDistance(),
        augmentation: Translation | None = StrongAugmentation(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2),
        paste_mask: PasteMask = ClassMask(of_batch=True),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.teacher.make_deterministic()
        self.pixel_weighting = pixel_weighting
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
            valid = target[VALID].to(confidence) if VALID in target else torch.ones_like(confidence)
            target_weights = self.target_weights(pseudo_labels, confidence) * valid
            paste_mask = self.paste_mask(source["mask"], step.generator)
            plain = to_float(paste(source["image"], target["image"], paste_mask))
            mask = paste(source["mask"], pseudo_labels, paste_mask)
            weights = paste(torch.ones_like(target_weights), target_weights, paste_mask)

        step.learn("mixed", step.translate(self.augmentation, plain), Labels(mask, weights, "all"), opacity=paste_mask)
        step.offer("mixed_weak", plain, opacity=paste_mask)
        step.offer("target", target["image"], Labels(pseudo_labels, valid), confidence=confidence)
        step.log["lambda"] = partial(unpasted_mean, weights, paste_mask)

    def target_weights(self, pseudo_labels: Tensor, confidence: Tensor) -> Tensor:
        """Weights of the target's valid pixels, float32 (N, H, W), by the teacher's confidence in them.

        Args:
            pseudo_labels: The teacher's labels, int64 (N, H, W).
            confidence: Its confidence in them, float32 (N, H, W).
        """
        return self.pixel_weighting(confidence, torch.zeros_like(confidence, dtype=torch.bool))
