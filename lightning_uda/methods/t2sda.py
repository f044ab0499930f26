"""T2S-DA: Pulling Target to Source (Wang et al., 2023), with target images and without."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.methods.daformer import DAFormer
from lightning_uda.methods.teacher import TeacherModule
from lightning_uda.pseudo_labels import ClassWeighting
from lightning_uda.ranges import ranged
from lightning_uda.step import Labels, Step, to_float
from lightning_uda.terms import Pull
from lightning_uda.translation import BlendJitter, FourierTranslation, Translation


class T2SDA(DAFormer):
    """DAFormer, and source images in the target's style whose features are pulled to those of the source as it is.

    The translated images ("pseudo_target") have the source's labels, so nothing of the target has to be known. The
    pull is a term (`Pull`); every direction of the paper's table is a setting of it and of `ce_on`. With any network:
    the paper has DeepLab-v2, DAFormer's and HRDA.

    Args:
        translation: What makes the translated images; `null` where neither the pull nor `ce_on` has a use for them.
        pull: L_pull; `null` leaves it out.
        ce_on: Which images the ground truth is taught on: "source", or "pseudo_target".
        class_weighting: Weights of the classes that the pseudo-labels' loss is multiplied by (the ablation "DRW on the
            target loss"); `null` leaves them out. Those of the pull are its own.
        teacher_statistics: What the teacher's BatchNorm normalises by: "running" statistics, the student's after every
            step (the teacher is in eval mode), or those of the "batch" (DAFormer).
        **common: As in `DAFormer`.

    Raises:
        ValueError: If translated images are to be taught, but there is no translation, the pull has one of its own, or
            the weights of classes don't go with their number.
    """

    views = (*DAFormer.views, "pseudo_target")

    @ranged()
    def __init__(
        self,
        *,
        translation: Translation | None = FourierTranslation(),
        pull: Pull | None = Pull(translation=None),
        ce_on: Literal["source", "pseudo_target"] = "source",
        class_weighting: ClassWeighting | None = None,
        teacher_statistics: Literal["running", "batch"] = "running",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if translation is None and ce_on == "pseudo_target":
            raise ValueError(
                "T2SDA: found ce_on: pseudo_target, but translation: null; expected a translation that makes these "
                "images. Give one, such as FourierTranslation, or set ce_on to source."
            )
        if pull is not None and pull.translation is not None:
            raise ValueError(
                f"T2SDA: found pull.translation: {type(pull.translation).__name__}; expected null, as the method makes "
                "the translated images itself. Give the translation to the method."
            )
        if class_weighting is not None:
            class_weighting.check(self.student.num_classes)
        self.translation = translation
        self.ce_on = ce_on
        self.class_weighting = class_weighting
        self.teacher_statistics = teacher_statistics
        if teacher_statistics == "running":
            self.teacher.keep_in_eval()
        self.add_term("pull", pull)

    def configure_callbacks(self) -> list[Callback]:
        """An `EMATeacher` of decay 0.999, unless the trainer has one already."""
        if self.has_callback(EMATeacher):
            return []
        return [EMATeacher(decay=0.999, buffers="copy" if self.teacher_statistics == "running" else "own")]

    def algorithm(self, step: Step) -> None:
        """A step of the paper's Algorithm 1, but for its terms: the pull and the feature distance."""
        source, labels = step.batch["source"], Labels(step.batch["source"]["mask"], over="all")
        if self.ce_on == "source":
            step.learn("source", source["image"], labels)
        else:
            step.offer("source", source["image"], labels)

        if self.translation is not None:
            with torch.no_grad():
                style = step.batch["target"]["image"]
                pseudo_target = self.translation(to_float(source["image"]), step.generator, style)
            if self.ce_on == "pseudo_target":
                step.learn("pseudo_target", pseudo_target, labels)
            else:
                step.offer("pseudo_target", pseudo_target, labels)

        self.learn_mixed(step)

    def target_weights(self, pseudo_labels: Tensor, confidence: Tensor) -> Tensor:
        """Those of `DAFormer`, times the weight of a pixel's class if there are such."""
        weights = super().target_weights(pseudo_labels, confidence)
        if self.class_weighting is None:
            return weights
        of_classes = self.class_weighting(pseudo_labels, confidence, self.student.num_classes)
        return weights * of_classes[pseudo_labels]


class T2SDAGeneralization(TeacherModule):
    """T2S-DA without target images: pulls source images of another look to those as they are.

    For networks that are to work on domains that nothing is known of. The loss over source images is over all pixels.

    Args:
        translation: What makes the images of another look: SimCLR's jitter, as the paper's style network needs weights
            of its own; or `FourierTranslation`, which takes the style of other images.
        style: Stream of the images whose style is taken: "source", each time the batch's next image; or "target",
            pictures of any kind, such as paintings, which are given as `data.target`.
        pull: L_pull with negatives of the source alone, and classes of equal weight.
        **common: As in `TeacherModule`.
    """

    views = ("source", "pseudo_target")

    @ranged()
    def __init__(
        self,
        *,
        translation: Translation = BlendJitter(),
        style: Literal["source", "target"] = "source",
        pull: Pull = Pull(target=None, negatives="source", class_weighting=None, translation=None),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.translation = translation
        self.style = style
        self.streams = tuple(dict.fromkeys((*self.streams, style)))
        self.teacher.keep_in_eval()
        self.add_term("pull", pull)

    def configure_callbacks(self) -> list[Callback]:
        """An `EMATeacher` of decay 0.999 that takes the student's statistics, unless the trainer has one."""
        return [] if self.has_callback(EMATeacher) else [EMATeacher(decay=0.999, buffers="copy")]

    def algorithm(self, step: Step) -> None:
        """Teaches source images, and offers them in another look."""
        source = step.batch["source"]
        image, labels = source["image"], Labels(source["mask"], over="all")
        step.learn("source", image, labels)
        with torch.no_grad():
            style = image.roll(-1, dims=0) if self.style == "source" else step.batch[self.style]["image"]
            other_look = self.translation(to_float(image), step.generator, style)
        step.offer("pseudo_target", other_look, labels)
