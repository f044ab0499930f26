"""The rounds of self-training: labels the target set before each, and feeds the `union` stream (CBST)."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_uda.data.datamodule import EvaluationImages, UDADataModule
from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.transforms import EvalTransform, TrainTransform
from lightning_uda.inference import Inference, MultiScale
from lightning_uda.ranges import COUNT, FACTOR, ROUNDS, ranged
from lightning_uda.self_training.data_checks import require_both_domains, require_one_size, target_of
from lightning_uda.self_training.label_folder import LabelFolder, RoundRecord, take_over
from lightning_uda.self_training.labelling import label_images
from lightning_uda.self_training.labels_key import labels_key
from lightning_uda.self_training.mining import RareClassMining
from lightning_uda.self_training.plan import RoundPlan
from lightning_uda.self_training.portion import PortionPolicy, SourcePerTarget, SourceSubset, learning_rate_factor
from lightning_uda.self_training.prior import resize_prior
from lightning_uda.self_training.spatial_prior import SpatialPrior
from lightning_uda.self_training.target_scores import Follow, Ranks, TargetScores, unseen
from lightning_uda.self_training.thresholds import LogitHistogram, RadixSelect, ThresholdSearch
from lightning_uda.self_training.union import UnionPart, UnionStream

ROUNDS_FOLDER = "rounds"
"""Name of the folder of pseudo-labels in a run folder; they are in `round_1`, `round_2`, ... below it."""

_NO_LABELS: dict[str, Any] = {"labels": None, "made_from": None, "target_images": None}
_FINISHED = (
    "the run is finished: the checkpoint is of step %d, the last one; nothing is left to train. For more than %d "
    "rounds raise num_rounds of model.rounds"
)
_log = logging.getLogger(__name__)


class SelfTrainingRounds(Callback):
    """Before each round labels the target set with the network as it is, then feeds the labels to the `union` stream.

    Each target image is decoded once in a round, unaugmented, and put through the network once; its logits are kept on
    disk while thresholds and then labels are computed from them. Ranks share the images. Labels are written as
    `rounds/round_<r>/<name>.png` (train ids, 255 for none, at the size of the image files) into the run folder, then
    `round.json` with thresholds and counts, which are logged too. Without a logger they are temporary.

    A round is an epoch of the trainer. It begins when its loader is made, as the trainer fetches the first batch
    before it calls any hook of a callback. `trainer.max_steps` needn't be set: it becomes the steps of all rounds.

    Runs resume within and between rounds. The round's labels can lie in the new run's folder, in the run folder that
    the checkpoint lies in, or where they were when it was written; they are copied into the new run's folder. At the
    start of a round labels that are missing or damaged are made anew; within a round they can't be.

    The method must offer `student`, `use_thresholds(thresholds)`, called as soon as a round's thresholds are known and
    when a run resumes within it, `begin_round()`, called after that where a round begins, and
    `loss.assign(scores, thresholds)`, as `SelfTraining` does.

    Args:
        num_rounds: Number of rounds.
        epochs_per_round: How often a round shows every image of its union.
        portions: Portion of the target pixels that is labelled, by round; 0 labels none.
        thresholds: How exp(-k) is found; its `scope` tells ST ("global") from CBST ("class").
        inference: How target images are put through the network to label them.
        source_images: Which source images a round trains on.
        mining: Crops around rare classes; needs `ScaledCrop` as the transform. `None` leaves it out.
        spatial_prior: What probabilities are multiplied by for the labels, never at test time ("-SP"); `None` leaves
            it out.
        target_subset: Trains on only so many target images, those of the highest class-balance score before the first
            round; 505 of Cityscapes in the published programs. `None` takes all.
        lr_round_factor: Factor on the learning rate from round to round: 1 (DeepLab) or 0.7071 (ResNet-38).
        accuracy: Whether to measure how many of the labels are right, which opens the target's labels for that alone.
        stored_bits: Of the logits that lie on the disk while a round labels its images: with 32 labels are those of the
            definition; 16 need half the room, and about one pixel in 10,000 is labelled otherwise.

    Raises:
        ValueError: If a number is below 1, or thresholds of a histogram are asked for with a spatial prior.
    """

    @ranged(num_rounds=ROUNDS, epochs_per_round=COUNT, target_subset=COUNT, lr_round_factor=FACTOR)
    def __init__(
        self,
        num_rounds: int = 3,
        epochs_per_round: int = 2,
        portions: PortionPolicy = PortionPolicy(),
        thresholds: ThresholdSearch = RadixSelect(),
        inference: Inference = MultiScale(scales=0.9),
        source_images: SourceSubset = SourcePerTarget(),
        mining: RareClassMining | None = RareClassMining(),
        spatial_prior: SpatialPrior | None = None,
        target_subset: int | None = None,
        lr_round_factor: float = 1.0,
        accuracy: bool = False,
        stored_bits: Literal[16, 32] = 32,
    ) -> None:
        if spatial_prior is not None and isinstance(thresholds, LogitHistogram):
            raise ValueError(
                "SelfTrainingRounds: found LogitHistogram with a spatial prior, whose products are no probabilities; "
                "expected RadixSelect as `thresholds`, which takes any scores."
            )
        self.num_rounds = num_rounds
        self.epochs_per_round = epochs_per_round
        self.portions = portions
        self.thresholds = thresholds
        self.inference = inference
        self.source_images = source_images
        self.mining = mining
        self.spatial_prior = spatial_prior
        self.target_subset = target_subset
        self.lr_round_factor = lr_round_factor
        self.stored_bits = stored_bits
        self.accuracy = accuracy
        self._plan: RoundPlan | None = None
        self._prior: Tensor | None = None
        self._temporary: TemporaryDirectory[str] | None = None
        self._state: dict[str, Any] = dict(_NO_LABELS)
        self._told: int | None = None  # round whose labels were reported last

    @property
    def plan(self) -> RoundPlan:
        """Which steps belong to which round; known once training is set up."""
        assert self._plan is not None, "rounds are planned when a run is set up to fit"
        return self._plan

    def learning_rate_factor(self, step: int) -> float:
        """Factor of the round that a step belongs to; known once training is set up."""
        return learning_rate_factor(self.plan.round_of(step), self.lr_round_factor)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before training checks the data, plans the rounds and offers the stream; all ranks must call it together.

        Raises:
            DatasetError: If source or target set are missing or empty, or target labels are wanted but missing.
            ValueError: If crops of the domains differ in size or can't be mined, or `trainer.max_steps` is beyond the
                last round.
        """
        if stage != "fit":
            return
        data = require_both_domains(trainer.datamodule, self.accuracy)  # type: ignore[attr-defined]
        require_one_size(data, self._transforms(data, (), ()))
        self._state, self._told = dict(_NO_LABELS), None
        self._plan = self._make_plan(trainer, data)
        if trainer.max_steps == -1:
            trainer.fit_loop.epoch_loop.max_steps = self._plan.num_steps
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._plan.check_last_step(trainer.max_steps)
        self._folder = self._rounds_folder(trainer)
        self._prior = None if self.spatial_prior is None else self.spatial_prior.of(data)
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        data.feed("union", partial(self._stream, trainer, pl_module, data))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the spatial prior into the run folder."""
        if self._prior is not None and self._temporary is None and trainer.is_global_zero:
            from lightning_uda.self_training.prior_figure import draw_spatial_prior  # brings matplotlib

            classes = trainer.datamodule.label_space.classes  # type: ignore[attr-defined]
            draw_spatial_prior(self._prior, classes, self._folder / "prior.png")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs how many steps the run has, which its config need not say."""
        for logger in trainer.loggers:
            logger.log_metrics({"rounds/steps": trainer.max_steps}, 0)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Removes labels that have no run folder."""
        if stage == "fit" and self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def state_dict(self) -> dict[str, Any]:
        """Where the round's labels lie and what they were made from, its target images, the plan of all rounds."""
        plan = self._plan
        first_steps, images = (None, None) if plan is None else (list(plan.first_steps), plan.images_per_step)
        return {**self._state, "first_steps": first_steps, "images_per_step": images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them for a run that resumes; evaluation needs nothing of it.

        Raises:
            ValueError: If the rounds of the checkpoint begin and end at other steps than those of this run.
        """
        if self._plan is not None and state_dict["first_steps"] is not None:
            self._plan.require_same(state_dict["first_steps"], state_dict.get("images_per_step"))
            self._state = {name: state_dict[name] for name in _NO_LABELS}

    def _make_plan(self, trainer: pl.Trainer, data: UDADataModule) -> RoundPlan:
        num_source, num_target = len(data.reader("source")), len(data.reader("target"))
        num_target = min(num_target, self.target_subset or num_target)
        counts = [self.source_images.count(number, num_source, num_target) for number in range(self.num_rounds)]
        images_per_step = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        return RoundPlan.of([num_target + count for count in counts], self.epochs_per_round, images_per_step)

    def _rounds_folder(self, trainer: pl.Trainer) -> Path:
        folder = trainer.log_dir if trainer.loggers else None
        if folder is None:
            self._temporary = TemporaryDirectory(prefix="lightning_uda_") if trainer.is_global_zero else None
            folder = trainer.strategy.broadcast(self._temporary.name if self._temporary is not None else None)
        return Path(cast(str, folder)) / ROUNDS_FOLDER

    def _stream(self, trainer: pl.Trainer, module: Any, data: UDADataModule) -> UnionStream:
        """The union of the round that the trainer's step is in; where the round begins, step a of the algorithm first.

        Raises:
            DatasetError: If a run resumes within a round whose labels can't be used, or labels can't be written.
        """
        step, number = trainer.global_step, self.plan.round_of(trainer.global_step)
        labels = LabelFolder(self._folder / f"round_{number + 1}", target_of(data))
        if step >= trainer.max_steps:
            _say(trainer, logging.WARNING, _FINISHED, step, self.num_rounds)
            return UnionStream.ended(UnionPart(labels.dataset, labels, data.target_transform, ()))
        begins = step == self.plan.first_steps[number]
        if begins:
            self._label(trainer, module, data, number, labels)
        else:
            self._find_labels(trainer, number, labels)
        record = labels.record(self._state["made_from"])
        self._state.update(labels=str(labels.folder), target_images=record.target_images)
        module.use_thresholds(record.threshold_tensor().to(module.device))
        if begins:
            module.begin_round()
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
            if self._told != number:  # the trainer makes two loaders where a run resumes between rounds
                self._told = number
                _say(trainer, logging.INFO, "%s", record.summary(self.num_rounds))
                for logger in trainer.loggers:
                    logger.log_metrics(record.metrics(), step)
        return self._union(data, number, labels, record)

    def _label(self, trainer: pl.Trainer, module: Any, data: UDADataModule, number: int, labels: LabelFolder) -> None:
        """Step a, unless the labels that these weights give are there from an earlier run."""
        if trainer.world_size > 1:  # each rank has running statistics of its own
            for buffer in module.student.buffers():
                torch.distributed.broadcast(buffer, src=0)
        self._state["made_from"] = self._labels_key(module, data, number)
        try:
            problems = self._take_over(trainer, labels)
            if problems:
                _say(
                    trainer, logging.WARNING, "the labels of round %d are made anew: %s", number + 1, " ".join(problems)
                )
            if problems is not None:
                self._write_labels(trainer, module, data, number, labels)
        except OSError as error:
            raise DatasetError(
                f"{labels.folder}: the pseudo-labels of round {number + 1} can't be written ({error}). Make room or "
                "mend the permissions, and resume from the last checkpoint (--ckpt_path); earlier rounds are whole."
            ) from error
        trainer.strategy.barrier("self_training_rounds")

    def _find_labels(self, trainer: pl.Trainer, number: int, labels: LabelFolder) -> None:
        """Brings the labels of a round that a run resumes within into its folder."""
        problems = self._take_over(trainer, labels)
        if problems is not None:
            places = ", ".join(map(str, self._places(trainer, labels)))
            raise DatasetError(
                f"The run resumes within round {number + 1}, whose pseudo-labels can't be used. "
                + (" ".join(problems) or f"They are gone: expected them in one of {places}.")
                + " Bring them back, or resume from a checkpoint of the end of a round, which makes new ones."
            )

    def _take_over(self, trainer: pl.Trainer, labels: LabelFolder) -> list[str] | None:
        """See `take_over`; the first rank does it for all."""
        found = None
        if trainer.is_global_zero:
            found = take_over(labels, self._places(trainer, labels), str(self._state["made_from"]))
        return trainer.strategy.broadcast(found)

    def _places(self, trainer: pl.Trainer, labels: LabelFolder) -> list[Path]:
        """Folders where labels can be: in this run's, beside the checkpoint, where they were when it was written."""
        checkpoint, written = trainer.ckpt_path, self._state["labels"]
        runs = () if checkpoint is None else Path(checkpoint).absolute().parents[:2]
        folders = [
            self._folder,
            *(run / ROUNDS_FOLDER for run in runs),
            *([] if written is None else [Path(written).parent]),
        ]
        return list(dict.fromkeys((folder / labels.folder.name).resolve() for folder in folders))

    def _write_labels(
        self, trainer: pl.Trainer, module: Any, data: UDADataModule, number: int, labels: LabelFolder
    ) -> None:
        """Step a: thresholds over all target pixels, then the label of each, then the record."""
        if trainer.is_global_zero:
            labels.clear()
        trainer.strategy.barrier("self_training_rounds")
        scores = self._target_scores(trainer, module, data)
        search, portion = self.thresholds, self.portions.portion(number)
        truth = data.label_reader("target") if self.accuracy else None
        chosen, images = self._state["target_images"], range(len(labels.dataset))
        with scores.kept_in(labels.folder, len(images if chosen is None else chosen)):
            if chosen is None and self.target_subset is not None:
                chosen = scores.most_balanced(images, self.target_subset)
            indices = images if chosen is None else chosen
            counts = label_images(scores, indices, search, portion, module.loss.assign, labels, truth)
        record = RoundRecord(
            round=number + 1,
            portion=str(portion),
            made_from=self._state["made_from"],
            target_set=labels.dataset.fingerprint(labels=False),
            images=len(indices),
            pixels=counts.pixels,
            classes=list(data.label_space.classes),
            thresholds=[value if math.isfinite(value) else None for value in search.thresholds.tolist()],
            predicted=search.predicted.tolist(),
            labelled=counts.labelled,
            accuracy=counts.accuracy,
            target_images=chosen,
        )
        if trainer.is_global_zero:
            record.write(labels.folder)

    def _target_scores(self, trainer: pl.Trainer, module: Any, data: UDADataModule) -> TargetScores:
        transform = EvalTransform(data.target_transform.resize, data.target_transform.interpolation)
        prior = None
        if self._prior is not None and self.spatial_prior is not None:
            prior = partial(resize_prior, self._prior.to(module.device), over=self.spatial_prior.over)
        return TargetScores(
            module.student,
            EvaluationImages(target_of(data), transform, None),
            self.inference,
            prior,
            data.num_workers,
            Ranks(trainer.global_rank, trainer.world_size, partial(trainer.strategy.reduce, reduce_op="sum")),
            _progress_of(trainer),
            self.stored_bits,
        )

    def _union(self, data: UDADataModule, number: int, labels: LabelFolder, record: RoundRecord) -> UnionStream:
        source, target = data.reader("source"), data.reader("target")
        chosen = record.images_of(labels.dataset)
        drawn = self.source_images.draw(number, len(source), len(chosen), data.seed)
        rare = ((), ()) if self.mining is None else self.mining.classes(torch.tensor(record.predicted))
        transforms = self._transforms(data, *rare)
        return UnionStream(
            UnionPart(target, labels, transforms["target"], chosen),
            UnionPart(source, data.label_reader("source"), transforms["source"], drawn.tolist()),
            data.seed,
            number,
            self.plan.positions(number),
        )

    def _transforms(
        self, data: UDADataModule, priority: tuple[int, ...], fallback: tuple[int, ...]
    ) -> dict[str, TrainTransform]:
        """Geometry of source and target images, mined where that is wanted."""
        transforms = {name: data.train_transform(name) for name in ("source", "target")}
        if self.mining is not None:
            for name in ("source", "target") if self.mining.source else ("target",):
                transforms[name] = self.mining.transform(transforms[name], priority, fallback)
        return transforms

    def _labels_key(self, module: Any, data: UDADataModule, number: int) -> str:
        """Key of all that labels depend on: weights, images, settings."""
        transform = data.target_transform
        images = (target_of(data).fingerprint(labels=False), transform.resize, transform.interpolation)
        choice = (self.portions.portion(number), self.target_subset, self._state["target_images"])
        parts = (self.thresholds, self.inference, self.spatial_prior, module.loss)
        return labels_key(module.student, (*images, *choice, *parts), self._prior)


def _say(trainer: pl.Trainer, level: int, message: str, *values: object) -> None:
    """Logs a message, once for all ranks."""
    if trainer.is_global_zero:
        _log.log(level, message, *values)


def _progress_of(trainer: pl.Trainer) -> Follow:
    """The `follow` of the callback that has one, which is the progress bar; without one progress isn't shown."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((bar.follow for bar in callbacks if hasattr(bar, "follow")), unseen)
