"""The teacher as an exponential moving average of the student (Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_uda.ranges import SHARE, ranged

BufferPolicy = Literal["own", "copy", "average"]


class EMATeacher(Callback):
    """Moves `pl_module.teacher` towards `pl_module.student` after every optimiser step.

    Update i (counted from 0) uses alpha_i = min(1 - 1 / (i + 1), decay): the first one copies the student.

    Parameters of a 16-bit type (`precision: bf16-true`) are too coarse to be averaged: a step of 1 - alpha of the
    difference is rounded away, and the teacher would never move. Float32 copies of them are averaged instead, and the
    teacher gets these rounded. The copies are in the checkpoint, so that a resumed run is exact.

    Args:
        decay: alpha, the share that the teacher keeps. 0 makes the teacher the student itself, which is the paper's
            Algorithm 1 of DACS to the letter.
        warmup: Whether the decay rises from 0 as above; without it alpha is `decay` from the first update on.
        buffers: What happens to buffers (BatchNorm statistics): "own" leaves them to the teacher's forward passes
            (DACS and its family), "copy" takes the student's, "average" averages floating-point ones like parameters
            and copies the rest.
    """

    @ranged(decay=SHARE)
    def __init__(self, decay: float = 0.99, warmup: bool = True, buffers: BufferPolicy = "own") -> None:
        self.decay = decay
        self.warmup = warmup
        self.buffers = buffers
        self.updates = 0
        self._copies: dict[str, Tensor] = {}  # of the teacher's 16-bit tensors, by name
        self._last_step = 0

    def alpha(self, update: int) -> float:
        """Share that the teacher keeps in update number `update`, counted from 0."""
        return min(1 - 1 / (update + 1), self.decay) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, student: nn.Module, teacher: nn.Module) -> None:
        """One update of all parameters, fused, and of the buffers as the policy says."""
        mine, theirs = self._averaged(teacher), self._averaged(student)
        self._copies = {name: self._copy(name, tensor) for name, tensor in mine.items() if tensor.itemsize < 4}
        average = get_ema_multi_avg_fn(self.alpha(self.updates))  # type: ignore[no-untyped-call]
        average(
            [self._copies.get(name, tensor) for name, tensor in mine.items()],
            [theirs[name].float() if name in self._copies else theirs[name] for name in mine],
            None,
        )
        for name, copy in self._copies.items():
            mine[name].copy_(copy)
        if self.buffers != "own":
            for buffer, source in zip(teacher.buffers(), student.buffers(), strict=True):
                if self.buffers == "copy" or not buffer.is_floating_point():
                    buffer.copy_(source)
        self.updates += 1

    def _averaged(self, network: nn.Module) -> dict[str, Tensor]:
        """Parameters of a network, and its floating-point buffers if these are averaged too."""
        buffers = network.named_buffers() if self.buffers == "average" else ()
        return {**dict(network.named_parameters()), **{name: b for name, b in buffers if b.is_floating_point()}}

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """Float32 copy of a 16-bit tensor, with what forward passes have changed in it since the last update."""
        if name not in self._copies:
            return tensor.float()
        copy = self._copies[name].to(tensor.device)
        return copy + (tensor.float() - copy.to(tensor.dtype).float())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts counting; checks that there is a teacher, alike the student but sharing nothing with it.

        Raises:
            ValueError: If the method has none, or if they share storage or differ in structure.
        """
        if stage == "fit":
            self.updates, self._copies = 0, {}
        student, teacher = getattr(pl_module, "student", None), getattr(pl_module, "teacher", None)
        if student is None or teacher is None:
            raise ValueError(
                f"EMATeacher needs a method with a student and a teacher, found {type(pl_module).__name__}. Remove the "
                "callback from trainer.callbacks, or choose a method with a teacher."
            )
        shapes = [[(n, t.shape) for n, t in module.state_dict().items()] for module in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise ValueError("EMATeacher: student and teacher differ in structure; make the teacher a copy of it.")
        if {t.data_ptr() for t in student.state_dict().values()} & {
            t.data_ptr() for t in teacher.state_dict().values()
        }:
            raise ValueError("EMATeacher: student and teacher share storage; make the teacher a deep copy.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers the step that training starts from."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the teacher if the batch ended with an optimiser step."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.update(pl_module.student, pl_module.teacher)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Number of updates made, and the float32 copies, for exact resumption."""
        return {"updates": self.updates, "copies": self._copies}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the number of updates made and the copies."""
        self.updates, self._copies = state_dict["updates"], dict(state_dict.get("copies", {}))
