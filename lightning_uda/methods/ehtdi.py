"""EHTDI: Exploring High-quality Target Domain Information (Li et al., ACM Multimedia 2022)."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.methods.teacher import TeacherModule
from lightning_uda.mixing import ClassPool, PasteMask, paste
from lightning_uda.pseudo_labels import pseudo_label
from lightning_uda.ranges import NOT_NEGATIVE, ranged
from lightning_uda.resize import size_of, upsample
from lightning_uda.step import Labels, Step, Term, View, to_float
from lightning_uda.terms import ConfidentPaste, PixelContrast, PrototypeContrast
from lightning_uda.translation import RandomBlur, RandomResizedCrop, Translation, ViewJitter


class EHTDI(TeacherModule):
    """Mixes crops as DACS does (CMix), pastes confident target pixels back into source crops, and contrasts two views.

    The student learns from whole source images, and labels whole target images by itself. Of both, crops are taken:
    the strong view has jittered target pixels, the weak view plain ones, and both have the same pasted source pixels.
    `htcm` pastes pixels that the student is confident of in the weak view from the strong view into the jittered source
    crop; `procl` and `picl` contrast the two views by classes and by pixels. Nothing weighs the pseudo-labels but the
    constant `mixed_weight`. Terms find these views: "source" (whole), "source_weak", "source_strong", "target_weak",
    "target_strong", "mixed", "mixed_weak" and, with a `second_augmentation`, "mixed_second".

    Args:
        mixed_weight: lambda_1, the weight of the mixed crops' loss.
        paste_mask: Which source pixels are pasted: `ClassPool` (half of the present classes that aren't stuff, rounded
            down: the published program) or `ClassMask` (half of all classes, as the paper has it); `null` leaves the
            mix and its loss out, so that `htcm` has to take target crops ("HTCM only").
        htcm: L_hts; `null` leaves it out. Its `of`, `image` and `pasted_before` name the published forms of its mask:
            of the mix (the default), of the target crop (`of: target_weak, image: target_strong`), and of both (`of:
            target_weak, image: mixed, pasted_before: united`).
        procl: Contrast of class prototypes; `null` leaves it out. lambda_2 is its weight: 0.01 for GTA5, 0.008 for
            SYNTHIA.
        picl: Contrast of pixels; `null` leaves it out.
        crop: Takes crops of images and labels; `null` works on whole images, which must then have one size.
        input_augmentation: What is done to whole images before anything else; `null` leaves it out.
        augmentation: What makes strong crops of weak ones; `null` leaves it out.
        second_augmentation: Makes another strong view, "mixed_second", which the contrasts may name in `between`;
            predictions still come from the weak one.
        pseudo_labels_of: Who labels whole target images: the "student" in train mode (the published program), or the
            "teacher".
        auxiliary_labels: What auxiliary classifiers learn on the mix: "predicted", the student's labels of the weak
            view, of the mean probability of all its classifiers of whole images (the published program), or "mixed",
            the same as the main one.
        evaluate: As in `TeacherModule`; the teacher (decay 0.999) serves for evaluation alone.
        **common: As in `TeacherModule`. `init_from` is the paper's warm-up, a source-only run.
    """

    streams = ("source", "target")
    views = (
        *("source", "source_weak", "source_strong", "target_weak", "target_strong"),
        *("mixed", "mixed_weak", "mixed_second"),
    )

    @ranged(mixed_weight=NOT_NEGATIVE)
    def __init__(
        self,
        *,
        mixed_weight: float = 0.1,
        paste_mask: PasteMask | None = ClassPool(),
        htcm: ConfidentPaste | None = ConfidentPaste(of="mixed_weak", image="mixed", onto="source_strong"),
        procl: PrototypeContrast | None = PrototypeContrast(),
        picl: PixelContrast | None = PixelContrast(),
        crop: RandomResizedCrop | None = RandomResizedCrop(size=512),
        input_augmentation: Translation | None = RandomBlur(),
        augmentation: Translation | None = ViewJitter(),
        second_augmentation: Translation | None = None,
        pseudo_labels_of: Literal["student", "teacher"] = "student",
        auxiliary_labels: Literal["predicted", "mixed"] = "predicted",
        evaluate: Literal["student", "teacher"] = "teacher",
        **common: Any,
    ) -> None:
        super().__init__(evaluate=evaluate, **common)
        self.mixes_streams = crop is None or crop.size is None
        self.mixed_weight = mixed_weight
        self.paste_mask = paste_mask
        self.crop = crop
        self.input_augmentation = input_augmentation
        self.augmentation = augmentation
        self.second_augmentation = second_augmentation
        self.pseudo_labels_of = pseudo_labels_of
        self.auxiliary_labels = auxiliary_labels
        first: list[tuple[str, Term | None]] = []  # what they contrast is done with before htcm shows a view of its own
        last: list[tuple[str, Term | None]] = []
        for name, contrast in (("procl", procl), ("picl", picl)):
            of_htcm = contrast is not None and not {"htcm", "htcm_weak"}.isdisjoint(contrast.reads)
            (last if of_htcm else first).append((name, contrast))
        for name, term in (*first, ("htcm", htcm), *last):
            self.add_term(name, term)

    def configure_callbacks(self) -> list[Callback]:
        """An `EMATeacher` of decay 0.999 that takes the student's statistics, unless the trainer has one."""
        return [] if self.has_callback(EMATeacher) else [EMATeacher(decay=0.999, buffers="copy")]

    def algorithm(self, step: Step) -> None:
        """A step of the published program, but for its terms, which the base runs after it."""
        source, target = step.batch["source"], step.batch["target"]
        source_image, target_image = (
            step.translate(self.input_augmentation, to_float(each["image"])) for each in (source, target)
        )
        step.learn("source", source_image, Labels(source["mask"]))

        with torch.no_grad():
            source_weak, source_labels = self._cropped(step, source_image, source["mask"])
            target_weak, target_labels = self._cropped(step, target_image, self.labelled(step, target_image))
            source_strong, target_strong = (step.translate(self.augmentation, x) for x in (source_weak, target_weak))

        step.offer("source_weak", source_weak, Labels(source_labels))
        step.offer("source_strong", source_strong, Labels(source_labels))
        step.offer("target_weak", target_weak)
        step.offer("target_strong", target_strong)
        if self.paste_mask is None:
            return

        with torch.no_grad():
            paste_mask = self.paste_mask(source_labels, step.generator)
            mixed_weak, mixed = (paste(source_weak, under, paste_mask) for under in (target_weak, target_strong))
            labels = paste(source_labels.long(), target_labels, paste_mask)

        step.offer("mixed_weak", mixed_weak, Labels(labels), opacity=paste_mask)
        if self.second_augmentation is not None:
            second = paste(source_weak, step.translate(self.second_augmentation, target_weak), paste_mask)
            step.offer("mixed_second", second, Labels(labels), opacity=paste_mask)
        step.learn(
            "mixed",
            mixed,
            Labels(labels, self.mixed_weight),
            opacity=paste_mask,
            auxiliary=self._for_auxiliary(step),
        )

    def labelled(self, step: Step, image: Tensor) -> Tensor:
        """Pseudo-labels of whole target images, float (N, 3, H, W) in [0, 1]: int64 (N, H, W)."""
        if self.pseudo_labels_of == "teacher":
            return self.pseudo_label(step, image)[0]
        logits = self.student(image)
        return pseudo_label(logits, size_of(image), align_corners=self.student.align_corners)[0]

    def _cropped(self, step: Step, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return (image, mask) if self.crop is None else self.crop(image, mask, step.generator)

    def _for_auxiliary(self, step: Step) -> Labels | None:
        """What auxiliary classifiers learn on the mix, where it isn't what the main one learns."""
        if self.auxiliary_labels == "mixed" or len(_of_whole_images(step.views["source"])) == 1:
            return None
        view = step.seen("mixed_weak")
        with torch.no_grad():
            size = size_of(view.image)
            probs = (upsample(x, size, self.student.align_corners).softmax(dim=1) for x in _of_whole_images(view))
            return Labels(reduce(add, probs).argmax(dim=1), self.mixed_weight)


def _of_whole_images(view: View) -> list[Tensor]:
    """Logits of the classifiers that cover the whole image, the main one first."""
    return [classifier.logits for classifier in view.classifiers if classifier.window is None]
