"""DSP: Dual Soft-Paste for unsupervised domain adaptive semantic segmentation (Gao et al., ACM Multimedia 2021)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_uda.callbacks.long_tail import LongTailStatistics
from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.methods.teacher import TeacherModule
from lightning_uda.mixing import ClassMask, ConfidenceConsistency, Consistency, PasteMask, paste, paste_tail, soft_paste
from lightning_uda.pseudo_labels import BatchConfidence, PixelWeighting
from lightning_uda.ranges import COUNT, COUNT_OR_NONE, SHARE, ranged
from lightning_uda.step import Labels, Step, to_float
from lightning_uda.terms import FeatureMMD
from lightning_uda.translation import StrongAugmentation, Translation


class DSP(TeacherModule):
    """Pastes one patch of a source template softly onto both a source and a target image, and aligns their features.

    The patch holds half of the template's classes and, over them, long-tail classes from other source images. This is
    the paper's algorithm; both published programs have defects that disable its long-tail paste. The paper's optimiser
    has Nesterov momentum, the programs' have none.

    Args:
        beta: Opacity of the paste, 0-1; 1 is a hard paste.
        long_tail_k: Long-tail classes pasted per step; 0 pastes none.
        long_tail_classes: What they are drawn from: the number of least frequent source classes (K; 5 for GTA5, 4 for
            SYNTHIA), "gap" for those in front of the largest rise of frequency, or their names, for the callback
            `LongTailStatistics` that the method brings.
        soft_labels_over: What the loss of the mixed source images is a mean over (Eq. 6, which has sums): "valid", each
            of its two terms over its own pixels that aren't void (the program of September 2021), or "all" pixels
            (that of July 2021).
        consistency: Weights of both labels of mixed target images: `ConfidenceConsistency`, `LiteralConsistency` (the
            paper's equation), `TwoTermConsistency` or `FirstTermConsistency` (both programs).
        feature_alignment: MMD between the features of the mixed images; `null` leaves it out.
        pixel_weighting: lambda of the pixels that come from the target; its `scope` has no effect.
        augmentation: What is done to mixed images before the student sees them; `null` leaves it out. Hue is in
            radians, as in the library version that the program pins.
        paste_mask: Which pixels of a template are pasted.
        **common: As in `TeacherModule`.

    Raises:
        ValueError: If `beta` isn't in [0, 1] or `long_tail_k` is negative.
    """

    streams = ("source", "template", "target")
    views = ("source", "target_mixed", "source_mixed", "target_mixed_weak", "source_mixed_weak", "target")
    mixes_streams = True

    @ranged(beta=SHARE, long_tail_k=COUNT_OR_NONE, long_tail_classes=COUNT)
    def __init__(
        self,
        *,
        beta: float = 0.8,
        long_tail_k: int = 2,
        long_tail_classes: int | Literal["gap"] | list[str] = 5,
        soft_labels_over: Literal["valid", "all"] = "valid",
        consistency: Consistency = ConfidenceConsistency(),
        feature_alignment: FeatureMMD | None = FeatureMMD(),
        pixel_weighting: PixelWeighting = BatchConfidence(threshold=0.968),
        augmentation: Translation | None = StrongAugmentation(hue_unit="radians"),
        paste_mask: PasteMask = ClassMask(),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.streams = (*self.streams, *(("tail",) if long_tail_k else ()))
        self.beta = float(beta)
        self.long_tail_k = long_tail_k
        self.long_tail_classes = long_tail_classes
        self.soft_labels_over: Literal["valid", "all"] = soft_labels_over
        self.consistency = consistency
        self.pixel_weighting = pixel_weighting
        self.augmentation = augmentation
        self.paste_mask = paste_mask
        self.add_term("feature", feature_alignment)

    def configure_callbacks(self) -> list[Callback]:
        """Those of a teacher, and, for a long-tail paste, `LongTailStatistics` unless the trainer has one."""
        tail = [LongTailStatistics()] if self.long_tail_k and not self.has_callback(LongTailStatistics) else []
        return [*super().configure_callbacks(), *tail]

    def algorithm(self, step: Step) -> None:
        """Algorithm 1 of the paper; the student's batches are clean source, mixed target, mixed source."""
        source_image, target_image = (to_float(step.batch[name]["image"]) for name in ("source", "target"))
        source_mask = step.batch["source"]["mask"]
        step.learn("source", source_image, Labels(source_mask))

        with torch.no_grad():
            pseudo_labels, confidence = self.pseudo_label(step, target_image)
            patch_image, patch_mask, paste_mask = self.composite_patch(step)
            opacity = self.beta * paste_mask.float()
            images = torch.cat([soft_paste(patch_image, under, opacity) for under in (target_image, source_image)])
            target_mixed, source_mixed = step.translate(self.augmentation, images).chunk(2)
            pixel_weights = self.pixel_weighting(confidence, torch.zeros_like(paste_mask))
            pasted, under = self.consistency.weights(pixel_weights, paste_mask, self.beta)
            target_labels = [Labels(paste(patch_mask, pseudo_labels, paste_mask), pasted, "all")]
            target_labels += [] if under is None else [Labels(pseudo_labels, under, "all")]
            source_labels = [
                Labels(source_mask, 1 - self.beta, self.soft_labels_over),
                Labels(paste(patch_mask, source_mask, paste_mask), self.beta, self.soft_labels_over),
            ]

        step.learn("target_mixed", target_mixed, *target_labels, opacity=opacity)
        step.learn("source_mixed", source_mixed, *source_labels, opacity=opacity)
        for name, image in zip(("target_mixed_weak", "source_mixed_weak"), images.chunk(2), strict=True):
            step.offer(name, image, opacity=opacity)
        step.offer("target", target_image, Labels(pseudo_labels), confidence=confidence)
        step.log["lambda"] = pixel_weights.mean
        if self.long_tail_k:
            step.log["tail_classes"] = partial(tail_classes, step.batch["tail"]["mask"])
            step.log["tail_pixels"] = partial(tail_pixels, step.batch["tail"]["mask"])

    def composite_patch(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Templates with long-tail classes over them: image (N, 3, H, W), labels and paste mask (N, H, W)."""
        image, mask = step.batch["template"]["image"], step.batch["template"]["mask"]
        paste_mask = self.paste_mask(mask, step.generator)
        if self.long_tail_k:
            tail = step.batch["tail"]
            image, mask, paste_mask = paste_tail(image, mask, paste_mask, tail["image"], tail["mask"])
        return to_float(image), mask, paste_mask


def tail_classes(tail_mask: Tensor) -> Tensor:
    """Long-tail classes really pasted (k, or less if tries ran out), mean over images; labels (N, k, H, W)."""
    return (tail_mask != IGNORE_INDEX).flatten(2).any(dim=2).float().sum(dim=1).mean()


def tail_pixels(tail_mask: Tensor) -> Tensor:
    """Share of the pixels that long-tail classes are pasted on; labels (N, k, H, W)."""
    return (tail_mask != IGNORE_INDEX).any(dim=1).float().mean()
