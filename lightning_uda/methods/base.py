"""What all methods share: the student, its optimiser, terms, evaluation, logging. Algorithms live in the methods."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.panel import Panel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_uda.checkpoints import CheckpointError, require_resumable
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.errors import is_of_small_images
from lightning_uda.files import NOTES_FILE, STOPPED_EARLY, read_text
from lightning_uda.inference import Inference, WholeImage
from lightning_uda.label_spaces import get_label_space
from lightning_uda.metrics import Confusion, Scoring, in_scope, iou_per_class, mean_column, mean_iou
from lightning_uda.networks.base import SegmentationNetwork, compiled_in_place, parameter_group, without_numbers
from lightning_uda.networks.checkpoints import start_from
from lightning_uda.networks.weights import require_finite
from lightning_uda.optim import Poly, Schedule, describe_updates, require_finite_states, require_state_fits
from lightning_uda.ranges import OF_OPTIMIZER, SEED, SHARE, ranged, require
from lightning_uda.ranks import global_means
from lightning_uda.resize import Size, size_of
from lightning_uda.step import Step, Term, View, to_float

_log = logging.getLogger(__name__)


_SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class UDAModule(LightningModule, ABC):
    """Base of all methods: a method says its streams and its `algorithm`.

    Each training step runs the algorithm, then the terms over what the student has seen, and minimises the sum of all
    losses; each is logged by its name (`train/loss_<name>`), the sum as `train/loss`.

    Args:
        network: The student.
        label_space: Name or file of the label space; the CLI links it to the data module's.
        optimizer: Makes the optimiser from parameter groups; the groups' rates are multiples of its `lr`, as the
            network declares them (classifier 10x).
        schedule: Learning-rate factor over the steps.
        inference: How images are put through the network at test time.
        seed: Key of the random numbers of training steps; the CLI links it to `seed_everything`.
        scoring: Sizes at which predictions are scored besides that of the labels, scores near class borders, classes
            that count as others.
        terms: Further terms of the loss by name, such as those of other papers; `null` leaves one out.
        init_from: Checkpoint of an earlier run, whose student is taken over, or its run folder, which stands for
            `checkpoints/last.ckpt` of the latest version. Where that run had further classes, the rows of this run's
            are picked by name. `null` starts from the network as it was made. It is opened at the start of training
            only, not when a run resumes.
        global_means: Whether the means over labelled pixels, and DACS's lambda, are those of all processes' images, as
            of one process with all of them, rather than each process's own (DDP's, and that of the published programs).
            Terms that compare features (MMD, contrast, pull) see the images of their process either way.
        backward_per_view: Whether the loss of a view is taken back to the weights before the student sees the next
            view, so that the layers' activations of one view are kept at a time, not those of all. Views that a term
            sends a gradient into, such as the two that `FeatureMMD` compares, keep theirs. Gradients are the same.

    Raises:
        ValueError: If the network's classes aren't those of the label space, or two terms have one name.
    """

    streams: Sequence[str] = ("source",)
    """Streams that a training batch must hold."""

    views: Sequence[str] = ()
    """Views that the `algorithm` beside it may give, for terms; none where a method doesn't say, and a step tells."""

    min_batch_size: int = 1
    """Least number of images of each stream in a batch."""

    sets_steps: bool = False
    """Whether the method says itself how many steps it trains for, unless `trainer.max_steps` does."""

    mixes_streams: bool = False
    """Whether a step mixes images of different streams, whose crops must then have one size."""

    last_views: Mapping[str, View] = {}
    """What the student saw in the last training step, without what it made of it; for pictures."""

    last_losses: Mapping[str, Tensor] = {}
    """The losses of a training step by name, for callbacks at its end; their sum was minimised."""

    gives_confidence: bool = False
    """Whether predictions come with the probability of the predicted class; `PredictionWriter` sets it where needed."""

    student: SegmentationNetwork

    _started_at_random = False  # this run, or an earlier one that it goes on from, as a checkpoint says
    _origin: str | None = None  # a note on the checkpoint of `init_from`

    @ranged(seed=SEED)
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
        terms: dict[str, Term | None] = {},  # noqa: B006  never changed
        init_from: str | None = None,
        global_means: bool = False,
        backward_per_view: bool = False,
    ) -> None:
        super().__init__()
        self.student = network
        self.terms = nn.ModuleDict()
        self.label_space = get_label_space(label_space)
        if network.num_classes != self.label_space.num_classes:
            raise ValueError(
                f"The network has {network.num_classes} classes, the label space {self.label_space.name!r} has "
                f"{self.label_space.num_classes}. Give the network num_classes={self.label_space.num_classes}."
            )
        self.optimizer = _usable(optimizer)
        self.schedule = schedule
        self.inference = inference
        self.seed = seed
        self.scoring = scoring
        self.init_from = init_from
        self.global_means = global_means
        self.backward_per_view = backward_per_view
        self.confusion = scoring.new_confusion(self.label_space)
        self.further_confusions = nn.ModuleDict(
            {scope: scoring.new_confusion(self.label_space) for scope in scoring.scopes}
        )
        for name, term in terms.items():
            self.add_term(name, term)

    def __setattr__(self, name: str, value: Any) -> None:
        """Takes what `torch.compile` wraps as the network itself, compiled in place, whose weights keep their names.

        A text in the place of another goes past what `nn.Module` does to find weights: Lightning notes the name of
        every hook on the module, some forty times a step.
        """
        if name in self.__dict__ and (value is None or isinstance(value, str)):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, compiled_in_place(value) if isinstance(value, nn.Module) else value)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Makes the method of arguments that are given, and takes over the weights of a checkpoint.

        Checkpoints hold tensors, not the parts of a method, so these have to be given; `lightning_uda.load` takes them
        from the config of the run.

        Args:
            checkpoint_path: The file.
            *args: As in `LightningModule.load_from_checkpoint`.
            **kwargs: As there; arguments of the method, `network` and `label_space` among them.

        Raises:
            ValueError: If these two aren't given, or the checkpoint doesn't fit.
        """
        if lacking := [name for name in ("network", "label_space") if name not in kwargs]:
            raise ValueError(
                f"{cls.__name__}.load_from_checkpoint: found no {' and no '.join(lacking)}, which checkpoints don't "
                'hold. Call lightning_uda.load("runs/NAME"), which makes the method by the config of its run, or give '
                "its arguments here too."
            )
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def add_term(self, name: str, term: Term | None) -> None:
        """Adds a copy of a term to the loss; `None` adds nothing.

        Args:
            name: What it is logged as, `train/loss_<name>`.
            term: The term.

        Raises:
            ValueError: If the name is taken, or the term needs features that the network doesn't give.
        """
        if term is None:
            return
        if "." in name or not name:
            raise ValueError(f"model.terms: found the name {name!r}; expected one without a dot, such as 'feature'.")
        if name not in self.terms and hasattr(self.terms, name):
            raise ValueError(f"model.terms: found the name {name!r}, which torch has for its own; give it another.")
        if name in self.terms:
            raise ValueError(
                f"model.terms: found a second term {name!r}; {type(self).__name__} has one of that name already. Give "
                "it another name."
            )
        if term.needs_features:
            self.student.require_features(f"model.terms.{name}: {type(term).__name__}")
        term = copy.deepcopy(term)
        term.name = name
        term.prepare(self.student)
        self.terms[name] = term
        self.streams = tuple(dict.fromkeys((*self.streams, *term.streams)))

    @abstractmethod
    def algorithm(self, step: Step) -> None:
        """What the student sees and is taught in a step: the algorithm of the method's paper."""

    def training_step(self, batch: dict[str, dict[str, Tensor]], batch_idx: int) -> Tensor:
        """The algorithm, then the terms; their losses are logged, and their sum is given back."""
        terms = list(cast(Mapping[str, Term], self.terms).values())
        generator = self.step_generator(self._batch_number(batch_idx))
        teacher = getattr(self, "teacher", None)
        if self.backward_per_view and batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.trainer.optimizers[0].zero_grad()
        backward = self._take_back if self.backward_per_view else None
        step = Step(
            batch, generator, self.student, differentiated=_differentiated_by(terms), teacher=teacher, backward=backward
        )
        with global_means(self.global_means):
            self.algorithm(step)
            for number, term in enumerate(terms):
                step.differentiated = _differentiated_by(terms[number:])
                loss = term.weight * term(step)
                step.add_loss(term.name, loss, of={*term.differentiates, term.name} & step.views.keys())
            loss = step.loss
        self.log_step({**step.losses, "loss": loss, **step.log})
        self.last_views = step.seen_views()
        self.last_losses = step.losses
        if self.backward_per_view and self.trainer.world_size > 1:  # DDP waits for every weight in the last part
            loss = loss + 0 * sum(weight.flatten()[0] for weight in self.parameters() if weight.requires_grad)
        return loss

    def _take_back(self, loss: Tensor) -> None:
        """Takes a part of a step's loss back to the weights as the trainer does the whole."""
        self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, None)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Sets gradients to zero, unless the step has done so, before it took parts of its loss back."""
        if not self.backward_per_view:
            optimizer.zero_grad()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Mends Lightning's count of steps, which logs go by: it counts one twice where an epoch's end is resumed."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Forgets the losses, which hold the graph that they came from."""
        self.last_losses = {}

    def on_train_end(self) -> None:
        """Forgets what the student saw last, which takes memory; notes in the run folder if the run stopped early."""
        self.last_views = {}
        trainer: Trainer = self.trainer
        folder = trainer.log_dir if trainer.loggers else None  # all ranks have to ask together
        stopped_by = next((one for one in trainer.early_stopping_callbacks if one.stopping_reason_message), None)
        if stopped_by is None or trainer.global_step >= trainer.max_steps or not trainer.is_global_zero:
            return
        note = f"{STOPPED_EARLY}step {trainer.global_step} of {trainer.max_steps}, by {stopped_by.monitor}"
        note += ", a choice that uses target labels" * stopped_by.monitor.startswith("val/")
        _log.info("%s", note)
        if folder is not None:
            with (Path(folder) / NOTES_FILE).open("a", encoding="utf-8") as file:
                file.write(f"{note}\n")

    def setup(self, stage: str) -> None:
        """Checks that the strategy leaves networks whole, the number of steps, batches and what terms need.

        Raises:
            ValueError: If they aren't.
        """
        strategy = type(self.trainer.strategy)
        if strategy.__name__ in _SHARDING:
            raise ValueError(
                f"trainer.strategy: found {strategy.__name__}, which spreads a network's weights over processes; "
                "teachers and checkpoints need them whole. Take `ddp` (docs/parallel.md says how large networks fit)."
            )
        if stage == "fit":
            self.require_steps(self.trainer.max_steps)
            self.require_what_terms_need()
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, UDADataModule):
            return
        if data.eval_transform.resize is not None:
            self._require_evaluable(data.eval_transform.resize)
        if stage != "fit":
            return
        parts: list[UDAModule | Term] = [self, *(cast(Term, term) for term in self.terms.values())]
        for part in parts:
            if data.batch_size < part.min_batch_size:
                raise ValueError(
                    f"data.batch_size: found {data.batch_size}, but {type(part).__name__} needs {part.min_batch_size} "
                    "images of each stream in a batch of a process. Raise the batch size, or leave that part out."
                )

    def _require_evaluable(self, size: Size) -> None:
        """Evaluates an image of a size on a copy without numbers; what else may go wrong there is left for later."""
        network = self.evaluated_network()
        tensors = [*network.parameters(), *network.buffers()]
        twin = copy.deepcopy(network, {id(tensor): without_numbers(tensor) for tensor in tensors}).eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                self.inference(twin, torch.empty(1, 3, *size, device="meta"), size)
        except Exception as error:
            if is_of_small_images(error):
                raise ValueError(
                    f"data.eval_transform.resize: found {list(size)}, too small for the network; give a larger height "
                    f"and width. ({error})"
                ) from error

    def require_steps(self, max_steps: int) -> None:
        """Checks that training has an end.

        Args:
            max_steps: The trainer's; -1 is none.

        Raises:
            ValueError: If it has none.
        """
        if max_steps <= 0 and not (self.sets_steps and max_steps == -1):
            raise ValueError(
                f"trainer.max_steps: found {max_steps}, but schedules count steps; set it to a number > 0."
            )

    def require_what_terms_need(self) -> None:
        """Checks that terms that need a teacher have one, and that `algorithm` or other terms may give what they read.

        Raises:
            ValueError: If that isn't so.
        """
        terms = list(cast(Mapping[str, Term], self.terms).values())
        for term in terms:
            if term.needs_teacher and not hasattr(self, "teacher"):
                raise ValueError(
                    f"model.terms.{term.name}: {type(term).__name__} needs the features of a teacher, but "
                    f"{type(self).__name__} has none. Choose a method with one, such as MeanTeacher, DACS or DAFormer."
                )
        views = next(vars(kind) for kind in type(self).__mro__ if "algorithm" in vars(kind)).get("views")
        if not views:
            return
        there = {*views, *(name for term in terms for name in (term.name, f"{term.name}_weak"))}
        for term in terms:
            for name in term.reads:
                term.require_view(name, there)

    def take_over(self, path: str) -> None:
        """Starts the student from the checkpoint of an earlier run; see `networks.start_from`."""
        self._origin, self._started_at_random = start_from(self.student, path, self.label_space)

    def evaluated_network(self) -> SegmentationNetwork:
        """The network that validation, test and prediction run."""
        return self.student

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Takes over the weights of `init_from`; optimiser over network and terms, its rates scaled by the schedule.

        Only here, and not yet in `setup`, the trainer knows whether a run resumes. Callbacks that use the weights, from
        `on_fit_start` on, come later.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ValueError: If it lacks classes of this run.
            WeightsError: If it can't be read, isn't finite, or doesn't fit the network.
        """
        if self.init_from is not None and self.trainer.ckpt_path is None:
            self.take_over(self.init_from)
        optimizer, max_steps = self._new_optimizer(), self.trainer.max_steps
        if self.trainer.gradient_clip_val:  # a fused one would unscale gradients of mixed precision after it only
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser over network and terms, at the rates of their groups."""
        groups = [*self.student.parameter_groups(), *self.student.attached_groups()]
        if any(True for _ in self.terms.parameters()):
            groups.append(parameter_group("terms", self.terms.parameters()))
        optimizer = self.optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_scale"]
        return optimizer

    def on_fit_start(self) -> None:
        """Says so if the last steps will not be evaluated.

        Raises:
            ValueError: If layers of timm have lost their activations.
        """
        _require_activations(self)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        interval = self.trainer.val_check_interval
        batches = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        evaluates = isinstance(data, UDADataModule) and data.val is not None
        if evaluates and isinstance(interval, int) and batches % interval:
            _log.warning(
                "trainer.max_steps is no multiple of trainer.val_check_interval: the last %d batches are not evaluated",
                batches % interval,
            )

    def on_train_start(self) -> None:
        """Writes what a reader of the results should know into the run folder; shows what must not be missed."""
        folder = self.trainer.log_dir if self.trainer.loggers else None  # all ranks have to ask together
        if not self.trainer.is_global_zero:
            return
        notes = self.notes()
        for note in notes:
            if note.startswith("warning: "):
                text = note.removeprefix("warning: ")
                rich.get_console().print(Panel(text, title="warning", style="yellow", title_align="left"))
            else:
                _log.info("%s", note)
        if folder is not None:
            path = Path(folder) / NOTES_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = read_text(path).splitlines() if path.is_file() else []  # of a run that goes on
            before = [line for line in lines if not line.startswith(STOPPED_EARLY)]
            path.write_text("".join(f"{note}\n" for note in dict.fromkeys([*before, *notes])), encoding="utf-8")

    def notes(self) -> list[str]:
        """Sentences on how the run trains that its report shows; those that begin with "warning: " stand out."""
        network = self.student
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        notes = [
            f"network: {type(network).__name__}, {trained / 1e6:.3g} million trained parameters",
            f"optimiser: {describe_updates(self.trainer.optimizers[0])}",
            *network.notes(),
        ]
        if self._origin is not None:
            notes.append(self._origin)
        elif network.random_weights or self._started_at_random:
            notes.append("weights: random at the start; --model.network.weights FILE gives others")
            if network.batch_norm != "train" and any(True for _ in network.batch_norm_modules()):
                notes.append(
                    f"warning: The network starts from random weights, but its BatchNorm layers are partly fixed "
                    f"(batch_norm: {network.batch_norm}), as they should be with trained weights only. Give it weights "
                    "(--model.network.weights FILE), or train its BatchNorm (--model.network.batch_norm train)."
                )
        return [*notes, *(note for term in cast(Mapping[str, Term], self.terms).values() for note in term.notes())]

    def has_callback(self, kind: type[Callback]) -> bool:
        """Whether the trainer has a callback of a kind already."""
        return any(isinstance(callback, kind) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]

    def step_generator(self, number: int) -> torch.Generator:
        """Source of all randomness of one training step: a CPU generator keyed by (seed, number of the batch, rank)."""
        (state,) = np.random.SeedSequence((self.seed, number, self.global_rank)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state) & (2**63 - 1))

    def _batch_number(self, batch_idx: int) -> int:
        """Number of a training batch since the start of training, over all epochs."""
        if self._trainer is None:
            return batch_idx
        accumulated: int = self.trainer.accumulate_grad_batches
        return self.global_step * accumulated + batch_idx % accumulated

    def log_step(self, values: Mapping[str, Tensor | Callable[[], Tensor]]) -> None:
        """Logs a step's scalars as `train/<name>`, the learning rate beside them, at logging steps only.

        They are logged from the CPU: Lightning reads what progress bars show at every step, not at logging steps alone,
        and each step would wait for the device.

        Args:
            values: Scalars, or functions that give one and are called where something is logged.
        """
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval == 0 or (self.global_step + 1) % interval:
            return
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        found = {name: value if isinstance(value, Tensor) else value() for name, value in values.items()}
        self.log_dict({f"train/{name}": value.detach().cpu() for name, value in found.items()}, prog_bar=True)
        self.log("train/lr", lr)

    def on_validation_epoch_start(self) -> None:
        """Forgets the previous evaluation."""
        for confusion in self.confusions().values():
            confusion.reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Adds a batch to the confusion matrices, of one pass through the network.

        Returns:
            "pred": arg-max labels, int64 (N, H, W), at the size of the masks, and "miou": the mean IoU of each image,
            float32 (N,) in [0, 1], see `metrics.segmentation.image_mious`.
        """
        mask = batch["mask"].long()
        scores = self.inference.scores(self.evaluated_network(), to_float(batch["image"]))
        confusions, predictions = self.confusions(), dict[Size, Tensor]()
        for scope, labels in self.scoring.labels(mask):
            size = size_of(labels)
            if size not in predictions:
                predictions[size] = scores(size).argmax(dim=1)
            confusions[scope].update(predictions[size], labels)
        return {"pred": predictions[size_of(mask)], "miou": self.confusion.batch_mious()}

    def on_validation_epoch_end(self) -> None:
        """Logs `val/miou`, the mean IoU over all classes in percent, and `val/miou_<scope>`."""
        self._log_miou("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Logs `test/miou` and `test/miou_<scope>`, in percent."""
        self._log_miou("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Labels at the size of the image files, and how sure the network is of them, if `gives_confidence` is set.

        Returns:
            "pred": uint8 (N, H, W), "name": the images' names, and "confidence": the probability of the predicted
            class, float32 (N, H, W) in [0, 1].
        """
        scores = self.inference(self.evaluated_network(), to_float(batch["image"]), batch["size"][0])
        found = {"pred": scores.argmax(dim=1).byte(), "name": batch["name"]}
        if not self.gives_confidence:
            return found
        probs = scores if self.inference.gives_probabilities else scores.softmax(dim=1)
        return {**found, "confidence": probs.amax(dim=1)}

    def predict_labels(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Arg-max labels, int64 (N, *size), of images uint8 (N, 3, H, W)."""
        return self.inference(self.evaluated_network(), to_float(image), size).argmax(dim=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the class names into the checkpoint, and what training began with."""
        checkpoint["classes"] = list(self.label_space.classes)
        checkpoint["random_weights"] = self._started_at_random or self.student.random_weights
        checkpoint["origin"] = self._origin

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint fits, and takes over what training began with.

        Raises:
            CheckpointError: If it doesn't fit this run.
            WeightsError: If weights are NaN or infinite.
        """
        trainer = self._trainer
        source = "The checkpoint" if trainer is None or trainer.ckpt_path is None else str(trainer.ckpt_path)
        self.require_fits(checkpoint, source, to_resume=trainer is not None and trainer.state.fn == "fit")
        self._started_at_random = bool(checkpoint.get("random_weights"))
        self._origin = checkpoint.get("origin")

    def require_fits(self, checkpoint: Mapping[str, Any], source: str | Path, to_resume: bool = False) -> None:
        """Checks that a checkpoint has the classes of this run, its tensors, and finite weights.

        Args:
            checkpoint: Its content.
            source: Where it comes from; used in messages.
            to_resume: Whether training goes on from it, so that its optimiser has to fit and be finite too.

        Raises:
            CheckpointError: If it hasn't the same classes, tensors and optimiser.
            WeightsError: If weights are NaN or infinite.
        """
        found, expected = checkpoint.get("classes"), list(self.label_space.classes)
        if found is not None and found != expected:
            of = f"{len(found)} classes {found}" if isinstance(found, list) else f"the classes {found!r}"
            raise CheckpointError(
                f"{source}: trained on {of}, but this run has {len(expected)} {expected} (label space "
                f"{self.label_space.name!r}). Use the label space of the checkpoint."
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        wanted = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        if differing := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
            raise CheckpointError(
                f"{source}: doesn't fit {type(self).__name__}: {len(differing)} tensors are missing, unknown or of "
                f"another shape, e.g. {differing[:3]}. Use the config that it was trained with (config.yaml in its run "
                "folder)."
            )
        networks = ("student.", "teacher.")
        require_finite(
            {name: tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith(networks)}, source
        )
        if to_resume:
            require_resumable(checkpoint, source)
            require_finite_states(checkpoint, source)
            if type(self).configure_optimizers is UDAModule.configure_optimizers:  # others know what they made
                require_state_fits(self._new_optimizer(), checkpoint, source)

    def _log_miou(self, stage: str) -> None:
        for scope, confusion in self.confusions().items():
            miou = mean_iou(iou_per_class(confusion.compute()))
            self.log(f"{stage}/{in_scope(mean_column(), scope)}", 100 * miou.float(), prog_bar=True, sync_dist=True)

    def confusions(self) -> dict[str | None, Confusion]:
        """All matrices: of all pixels at the size of the labels (`None`), and of the further scopes of `scoring`."""
        others = cast(Mapping[str, Confusion], self.further_confusions)
        return {None: self.confusion, **dict(others.items())}


def _differentiated_by(terms: Sequence[Term]) -> frozenset[str]:
    return frozenset(name for term in terms for name in term.differentiates)


def _require_activations(module: nn.Module) -> None:
    """Checks that no layer that normalises and activates has become one that normalises alone."""
    for name, layer in module.named_modules():
        if type(layer) is nn.SyncBatchNorm and any(True for _ in layer.children()):
            raise ValueError(
                f"{name}: found a SyncBatchNorm in the place of a layer of timm whose activation is lost: PyTorch's "
                "conversion takes it for a plain BatchNorm. Give the trainer plugins=[SharedBatchNorm()] of "
                "lightning_uda.shared_batch_norm, as the command line does, instead of sync_batchnorm=True."
            )


def _usable(optimizer: OptimizerCallable) -> OptimizerCallable:
    """An optimiser's maker, tried on one weight, so that numbers it can't train with are refused before a run begins.

    Raises:
        ValueError: If its learning rate or another of its numbers is negative, infinite or NaN, its momentum more than
            1, or it can't make a step.
    """
    weight = nn.Parameter(torch.zeros(1))
    made = optimizer([weight])
    kind = f"model.optimizer: {type(made).__name__}"
    for name, value in made.defaults.items():
        require(SHARE if name == "momentum" else OF_OPTIMIZER, value, f"{kind}.{name}")
    if not made.defaults.get("capturable"):  # which a GPU alone can
        weight.grad = torch.zeros(1)
        try:
            made.step(lambda: 0.0)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{kind}: it can't make a step ({str(error).splitlines()[0]}). Choose another.") from error
    return optimizer
