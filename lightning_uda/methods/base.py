"""What all methods share: the student, its optimiser, evaluation, logging. Training steps live in the methods."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.inference import Inference, WholeImage
from lightning_uda.label_spaces import get_label_space
from lightning_uda.metrics import Confusion, Scoring, at_size, iou_per_class, mean_iou, size_name
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.optim import Poly, Schedule
from lightning_uda.resize import resize_labels, size_of

_log = logging.getLogger(__name__)


class UDAModule(LightningModule):
    """Base of all methods.

    Args:
        network: The student.
        label_space: Name or file of the label space; the CLI links it to the data module's.
        optimizer: Makes the optimiser from parameter groups; the groups' rates are multiples of its `lr`, as the
            network declares them (classifier 10x).
        schedule: Learning-rate factor over the steps.
        inference: How images are put through the network at test time.
        seed: Key of the random numbers of training steps; the CLI links it to `seed_everything`.
        scoring: Sizes at which predictions are scored besides that of the labels, and classes that count as others.
    """

    streams: Sequence[str] = ("source",)
    """Streams that a training batch must hold."""

    student: SegmentationNetwork

    def __init__(
        self,
        network: SegmentationNetwork,
        label_space: str,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(
            params, lr=2.5e-4, momentum=0.9, weight_decay=5e-4
        ),
        schedule: Schedule = Poly(power=0.9),
        inference: Inference = WholeImage(),
        seed: int = 0,
        scoring: Scoring = Scoring(),
    ) -> None:
        super().__init__()
        self.student = network
        self.label_space = get_label_space(label_space)
        if network.num_classes != self.label_space.num_classes:
            raise ValueError(
                f"The network has {network.num_classes} classes, the label space {self.label_space.name!r} has "
                f"{self.label_space.num_classes}. Give the network num_classes={self.label_space.num_classes}."
            )
        self.optimizer = optimizer
        self.schedule = schedule
        self.inference = inference
        self.seed = seed
        self.scoring = scoring
        self.confusion = scoring.new_confusion(self.label_space)
        self.confusions_at = nn.ModuleDict(
            {size_name(size): scoring.new_confusion(self.label_space) for size in scoring.sizes}
        )

    def evaluated_network(self) -> SegmentationNetwork:
        """The network that validation, test and prediction run."""
        return self.student

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimiser over the network's parameter groups, its rates scaled by the schedule at every step."""
        optimizer = self.optimizer(self.student.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_scale"]
        max_steps = self.trainer.max_steps
        if max_steps <= 0:
            raise ValueError(
                f"trainer.max_steps: found {max_steps}, but schedules count steps; set it to a number > 0."
            )
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Says so if the last steps will not be evaluated."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        interval = self.trainer.val_check_interval
        batches = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        if data is not None and data.val is not None and isinstance(interval, int) and batches % interval:
            _log.warning(
                "trainer.max_steps is no multiple of trainer.val_check_interval: the last %d batches are not evaluated",
                batches % interval,
            )

    def step_generator(self, batch_idx: int) -> torch.Generator:
        """Source of all randomness of one training step: a CPU generator keyed by (seed, step, rank)."""
        (state,) = np.random.SeedSequence((self.seed, batch_idx, self.global_rank)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state) & (2**63 - 1))

    def log_step(self, values: Mapping[str, Tensor]) -> None:
        """Logs scalars of a training step as `train/<name>`, the learning rate beside them, at logging steps only."""
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval == 0 or (self.global_step + 1) % interval:
            return
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({f"train/{name}": value.detach() for name, value in values.items()}, prog_bar=True)
        self.log("train/lr", lr)

    def on_validation_epoch_start(self) -> None:
        """Forgets the previous evaluation."""
        for confusion in self._confusions().values():
            confusion.reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the confusion matrices, of one pass through the network.

        Returns:
            "pred": arg-max labels, int64 (N, H, W), at the size of the masks.
        """
        mask = batch["mask"].long()
        scores = self.inference.scores(self.evaluated_network(), to_float(batch["image"]))
        prediction = scores(size_of(mask)).argmax(dim=1)
        self.confusion.update(prediction, mask)
        for size in self.scoring.sizes:
            self._confusions()[size_name(size)].update(scores(size).argmax(dim=1), resize_labels(mask, size))
        return {"pred": prediction}

    def on_validation_epoch_end(self) -> None:
        """Logs `val/miou`, the mean IoU over all classes in percent, and `val/miou_at_<size>`."""
        self._log_miou("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Logs `test/miou` and `test/miou_at_<size>`, in percent."""
        self._log_miou("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Labels at the size of the image files.

        Returns:
            "pred": uint8 (N, H, W), and "name": the images' names.
        """
        return {"pred": self.predict_labels(batch["image"], batch["size"][0]).byte(), "name": batch["name"]}

    def predict_labels(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Arg-max labels, int64 (N, *size), of images uint8 (N, 3, H, W)."""
        return self.inference(self.evaluated_network(), to_float(image), size).argmax(dim=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the class names into the checkpoint."""
        checkpoint["classes"] = list(self.label_space.classes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint has the classes of this run.

        Raises:
            ValueError: If it hasn't.
        """
        found, expected = checkpoint.get("classes"), list(self.label_space.classes)
        if found is not None and found != expected:
            raise ValueError(
                f"The checkpoint was trained on {len(found)} classes {found}, this run has {len(expected)} "
                f"{expected} (label space {self.label_space.name!r}). Use the label space of the checkpoint."
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        if differing := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
            raise ValueError(
                f"The checkpoint doesn't fit {type(self).__name__}: {len(differing)} tensors are "
                f"missing, unknown or of another shape, e.g. {differing[:3]}. Use the config that it was trained with "
                "(config.yaml in its run folder)."
            )

    def _log_miou(self, stage: str) -> None:
        for size, confusion in self._confusions().items():
            miou = mean_iou(iou_per_class(confusion.compute()))
            self.log(f"{stage}/{at_size('miou', size)}", 100 * miou.float(), prog_bar=True)

    def _confusions(self) -> dict[str | None, Confusion]:
        """All matrices: at the size of the labels (`None`) and at the sizes of `scoring`."""
        others = cast(Mapping[str, Confusion], self.confusions_at)
        return {None: self.confusion, **dict(others.items())}


class TeacherModule(UDAModule):
    """Base of the methods with a teacher: a frozen copy of the student, moved by the `EMATeacher` callback.

    Args:
        network: The student; the teacher starts as its copy.
        label_space: As in `UDAModule`.
        optimizer: As in `UDAModule`.
        schedule: As in `UDAModule`.
        inference: As in `UDAModule`.
        evaluate: Which network validation, test and prediction run: "student" (DACS) or "teacher".
        seed: As in `UDAModule`.
        scoring: As in `UDAModule`.
    """

    teacher: SegmentationNetwork

    def __init__(
        self,
        network: SegmentationNetwork,
        label_space: str,
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(
            params, lr=2.5e-4, momentum=0.9, weight_decay=5e-4
        ),
        schedule: Schedule = Poly(power=0.9),
        inference: Inference = WholeImage(),
        evaluate: Literal["student", "teacher"] = "student",
        seed: int = 0,
        scoring: Scoring = Scoring(),
    ) -> None:
        super().__init__(network, label_space, optimizer, schedule, inference, seed, scoring)
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.evaluate = evaluate

    def configure_callbacks(self) -> list[Callback]:
        """An `EMATeacher`, unless the trainer has one already."""
        present = any(isinstance(callback, EMATeacher) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if present else [EMATeacher()]

    def evaluated_network(self) -> SegmentationNetwork:
        """The student or the teacher, as `evaluate` says."""
        return self.student if self.evaluate == "student" else self.teacher


def to_float(image: Tensor) -> Tensor:
    """Images uint8 (N, 3, H, W) as float32 in [0, 1]."""
    return image.to(torch.float32, copy=True).div_(255)
