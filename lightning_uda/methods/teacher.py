"""What the methods with a teacher share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Callback
from torch import Tensor

from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.methods.base import UDAModule
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.pseudo_labels import pseudo_label
from lightning_uda.resize import size_of
from lightning_uda.step import Step, Term


class TeacherModule(UDAModule):
    """Base of the methods with a teacher: a frozen copy of the student, moved by the `EMATeacher` callback.

    Args:
        evaluate: Which network validation, test and prediction run: "student" (DACS) or "teacher".
        **common: As in `UDAModule`; the teacher starts as a copy of `network`.
    """

    teacher: SegmentationNetwork

    def __init__(self, *, evaluate: Literal["student", "teacher"] = "student", **common: Any) -> None:
        super().__init__(**common)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.evaluate = evaluate

    def add_term(self, name: str, term: Term | None) -> None:
        """Adds a copy of a term to the loss; of what it attaches to the student, the teacher gets a copy."""
        super().add_term(name, term)
        if "teacher" in self._modules:
            self.teacher.attach_copies(self.student)

    def take_over(self, path: str) -> None:
        """Starts the student from the checkpoint of an earlier run, and the teacher as its copy again."""
        super().take_over(path)
        self.teacher.load_state_dict(self.student.state_dict())

    def configure_callbacks(self) -> list[Callback]:
        """An `EMATeacher`, unless the trainer has one already."""
        return [] if self.has_callback(EMATeacher) else [EMATeacher()]

    def evaluated_network(self) -> SegmentationNetwork:
        """The student or the teacher, as `evaluate` says."""
        return self.student if self.evaluate == "student" else self.teacher

    def pseudo_label(
        self, step: Step, image: Tensor, alignment: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The teacher's labels of images and its confidence in them; see `pseudo_labels.pseudo_label`.

        Args:
            step: Keeps what the teacher made of the images, for terms.
            image: RGB (N, 3, H, W), uint8 or float in [0, 1].
            alignment: What is done to the probabilities (N, C, H, W) before.

        Returns:
            Labels, int64 (N, H, W), and confidence, float32 (N, H, W).
        """
        return pseudo_label(step.teacher_logits(image), size_of(image), alignment, self.teacher.align_corners)
