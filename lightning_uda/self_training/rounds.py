"""The rounds of self-training: labels the target set before each, and feeds the `union` stream (CBST)."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_uda.callbacks.progress_bar import StepProgressBar
from lightning_uda.data.datamodule import EvaluationImages, UDADataModule
from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.data.streams import LabelReader
from lightning_uda.data.transforms import EvalTransform, TrainTransform
from lightning_uda.inference import Inference, MultiScale
from lightning_uda.resize import resize_label
from lightning_uda.self_training.label_folder import RECORD_FILE, LabelFolder, RoundRecord
from lightning_uda.self_training.labelling import LabelCounts, Ranks, TargetScores
from lightning_uda.self_training.mining import RareClassMining
from lightning_uda.self_training.portion import PortionPolicy, SourcePerTarget, SourceSubset, learning_rate_factor
from lightning_uda.self_training.prior import resize_prior
from lightning_uda.self_training.thresholds import LogitHistogram, RadixSelect, ThresholdSearch
from lightning_uda.self_training.union import RoundPlan, SpatialPrior, UnionPart, UnionStream

ROUNDS_FOLDER = "rounds"
"""Name of the folder of pseudo-labels in a run folder; they are in `round_1`, `round_2`, ... below it."""

_log = logging.getLogger(__name__)


class SelfTrainingRounds(Callback):
    """Before each round labels the target set with the network as it is, then feeds the labels to the `union` stream.

    A round looks at every target image, unaugmented, several times: for the thresholds, and for the labels. The
    network is run once; its logits are kept on disk until the labels are there. Ranks share the images. Labels are
    written as `rounds/round_<r>/<name>.png` (train ids, 255 for none, at the size of the image files) into the run
    folder, then `round.json` with thresholds and counts, which are logged too. Without a logger they are temporary.

    A round is an epoch of the trainer. It begins when its loader is made, as the trainer fetches the first batch
    before it calls any hook of a callback. `trainer.max_steps` needn't be set: it becomes the steps of all rounds. Runs
    resume within and between rounds, and take up labels that were complete.

    The method must offer `student`, `begin_round` and `loss.assign`, as `SelfTraining` does.

    Args:
        num_rounds: Number of rounds.
        epochs_per_round: How often a round shows every image of its union.
        portions: Portion of the target pixels that is labelled, by round.
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

    Raises:
        ValueError: If a number is below 1, or thresholds of a histogram are asked for with a spatial prior.
    """

    def __init__(
        self,
        num_rounds: int = 3,
        epochs_per_round: int = 2,
        portions: PortionPolicy = PortionPolicy(),
        thresholds: ThresholdSearch = RadixSelect(),
        inference: Inference = MultiScale(scales=(0.9,)),
        source_images: SourceSubset = SourcePerTarget(),
        mining: RareClassMining | None = RareClassMining(),
        spatial_prior: SpatialPrior | None = None,
        target_subset: int | None = None,
        lr_round_factor: float = 1.0,
        accuracy: bool = False,
    ) -> None:
        if num_rounds < 1 or epochs_per_round < 1 or (target_subset is not None and target_subset < 1):
            raise ValueError(
                f"SelfTrainingRounds: found num_rounds={num_rounds}, epochs_per_round={epochs_per_round}, "
                f"target_subset={target_subset}; expected numbers of 1 or more."
            )
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
        self.accuracy = accuracy

    def learning_rate_factor(self, step: int) -> float:
        """Factor of the round that a step belongs to; known once a run is set up."""
        return learning_rate_factor(self._plan.round_of(step), self.lr_round_factor)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks the data, plans the rounds and offers the stream; asks for the run folder, as all ranks must together.

        Raises:
            DatasetError: If source or target set are missing or empty, or target labels are wanted but missing.
            ValueError: If crops of the domains differ in size or can't be mined, or `trainer.max_steps` is beyond the
                last round.
        """
        if stage != "fit":
            return
        data = _require_data(trainer)
        _require_one_size(data, self._transforms(data, (), ()))
        self._plan = self._make_plan(trainer, data)
        self._labels: Path | None = None
        self._target_images: list[int] | None = None
        self._temporary: TemporaryDirectory[str] | None = None
        self._folder = self._rounds_folder(trainer)
        self._prior = None if self.spatial_prior is None else self.spatial_prior.of(data)
        if self.accuracy and not _target(data).has_labels:
            raise DatasetError(
                "SelfTrainingRounds: accuracy=true needs labels of the target set, but data.target has none. Give it "
                "its labels, which are used for that alone, or leave the accuracy out."
            )
        _set_max_steps(trainer, self._plan)
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        data.feed("union", partial(self._stream, trainer, pl_module, data))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the spatial prior into the run folder."""
        if self._prior is not None and self._temporary is None and trainer.is_global_zero:
            from lightning_uda.self_training.prior_figure import draw_spatial_prior  # brings matplotlib

            draw_spatial_prior(self._prior, _require_data(trainer).label_space.classes, self._folder / "prior.png")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs how many steps the run has, which its config need not say."""
        for logger in trainer.loggers:
            logger.log_metrics({"rounds/steps": trainer.max_steps}, trainer.global_step)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Removes labels that have no run folder."""
        if stage == "fit" and self._temporary is not None:
            self._temporary.cleanup()

    def state_dict(self) -> dict[str, Any]:
        """Where the labels of the round are, which target images it trains on, and the first steps of the rounds."""
        labels = None if self._labels is None else str(self._labels.absolute())
        return {"labels": labels, "target_images": self._target_images, "first_steps": list(self._plan.first_steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        planned, found = state_dict["first_steps"], list(self._plan.first_steps)
        if any(a != b for a, b in zip(planned, found, strict=False)):
            raise ValueError(
                f"The checkpoint's rounds begin and end at the steps {planned}, those of this run at {found}; expected "
                "the same, as a round can't change halfway. Resume with the same data, batch size, accumulation, "
                "number of processes, epochs_per_round and source_images."
            )
        self._labels = None if state_dict["labels"] is None else Path(state_dict["labels"])
        self._target_images = state_dict["target_images"]

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

    # A round

    def _stream(self, trainer: pl.Trainer, module: Any, data: UDADataModule) -> UnionStream:
        """The union of the round that the trainer's step is in; where the round begins, step a of the algorithm first.

        Raises:
            DatasetError: If a run resumes within a round whose labels are gone, or labels can't be written.
        """
        number = self._plan.round_of(trainer.global_step)
        if trainer.global_step == self._plan.first_steps[number]:
            record = self._label(trainer, module, data, number)
            module.use_thresholds(record.threshold_tensor())
            module.begin_round()
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
        else:
            record = self._resumed(number)
            module.use_thresholds(record.threshold_tensor())
        return self._union(data, number, record)

    def _label(self, trainer: pl.Trainer, module: Any, data: UDADataModule, number: int) -> RoundRecord:
        """Labels the target set, unless the labels that these weights give are there already."""
        if trainer.world_size > 1:  # each rank has running statistics of its own
            for buffer in module.student.buffers():
                torch.distributed.broadcast(buffer, src=0)
        made_from = self._fingerprint(module, data, self.portions.portion(number))
        folder = self._folder / f"round_{number + 1}"
        earlier = [] if self._labels is None else [self._labels.parent / folder.name]
        found: Path | None = next((path for path in (folder, *earlier) if _is_made_from(path, made_from)), None)
        found = trainer.strategy.broadcast(found)
        if found is None:
            try:
                self._write_labels(trainer, module, data, number, LabelFolder(folder, _target(data)), made_from)
            except OSError as error:
                raise DatasetError(
                    f"{folder}: the pseudo-labels of round {number + 1} can't be written ({error}). Make room or mend "
                    "the permissions, and resume from the last checkpoint (--ckpt_path); earlier rounds are whole."
                ) from error
            trainer.strategy.barrier("self_training_rounds")
        self._labels = found or folder
        record = self._resumed(number)
        self._target_images = record.target_images
        if trainer.is_global_zero:
            _log.info("%s", record.summary(self.num_rounds))
        for logger in trainer.loggers:
            logger.log_metrics(record.metrics(), trainer.global_step)
        return record

    def _write_labels(
        self, trainer: pl.Trainer, module: Any, data: UDADataModule, number: int, folder: LabelFolder, made_from: str
    ) -> None:
        """Step a: thresholds over all target pixels, then the label of each, then the record."""
        folder.folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero:
            (folder.folder / RECORD_FILE).unlink(missing_ok=True)
        trainer.strategy.barrier("self_training_rounds")
        scores = self._target_scores(trainer, module, data)
        search, portion = self.thresholds, self.portions.portion(number)
        counts = LabelCounts(len(data.label_space.classes), module.device)
        truth = data.label_reader("target") if self.accuracy else None
        with scores.kept_in(folder.folder):
            indices: Sequence[int] = range(len(folder.dataset))
            chosen = self._target_images
            if chosen is None and self.target_subset is not None:
                chosen = scores.most_balanced(indices, self.target_subset)
            indices = indices if chosen is None else chosen
            scores.find_thresholds(indices, search, portion)
            for index, probs in scores.look(indices, "labelling"):
                label = module.loss.assign(probs, search.thresholds)[0]
                counts.update(label, None if truth is None else _truth(truth, index, label))
                folder.write(index, label.cpu().numpy())
        counts.all_reduce(scores.ranks)
        record = RoundRecord(
            round=number + 1,
            portion=str(portion),
            made_from=made_from,
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
            record.write(folder.folder)

    def _target_scores(self, trainer: pl.Trainer, module: Any, data: UDADataModule) -> TargetScores:
        transform = EvalTransform(data.target_transform.resize, data.target_transform.interpolation)
        prior = None
        if self._prior is not None and self.spatial_prior is not None:
            prior = partial(resize_prior, self._prior.to(module.device), over=self.spatial_prior.over)
        bars = [bar for bar in trainer.callbacks if isinstance(bar, StepProgressBar)]  # type: ignore[attr-defined]
        return TargetScores(
            module.student,
            EvaluationImages(_target(data), transform, None),
            self.inference,
            prior,
            data.num_workers,
            Ranks(trainer.global_rank, trainer.world_size, partial(_sum_over_ranks, trainer)),
            bars[0].follow if bars else _unseen,
        )

    def _resumed(self, number: int) -> RoundRecord:
        record = None if self._labels is None else RoundRecord.read(self._labels)
        if record is None:
            raise DatasetError(
                f"The run resumes within round {number + 1}, whose pseudo-labels are gone: expected them in "
                f"{self._labels}. Bring that folder back, or resume from a checkpoint of the end of a round."
            )
        return record

    def _union(self, data: UDADataModule, number: int, record: RoundRecord) -> UnionStream:
        assert self._labels is not None
        source, target = data.reader("source"), data.reader("target")
        chosen = range(len(target)) if record.target_images is None else record.target_images
        drawn = self.source_images.draw(number, len(source), len(chosen), data.seed)
        transforms = self._transforms(data, *self._rare_classes(record))
        return UnionStream(
            UnionPart(target, LabelFolder(self._labels, target), transforms["target"], chosen),
            UnionPart(source, data.label_reader("source"), transforms["source"], drawn.tolist()),
            data.seed,
            number,
            self._plan.positions(number),
        )

    def _rare_classes(self, record: RoundRecord) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return ((), ()) if self.mining is None else self.mining.classes(torch.tensor(record.predicted))

    def _transforms(
        self, data: UDADataModule, priority: tuple[int, ...], fallback: tuple[int, ...]
    ) -> dict[str, TrainTransform]:
        """Geometry of source and target images, mined where that is wanted."""
        transforms = {name: data.train_transform(name) for name in ("source", "target")}
        if self.mining is not None:
            for name in ("source", "target") if self.mining.source else ("target",):
                transforms[name] = self.mining.transform(transforms[name], priority, fallback)
        return transforms

    def _fingerprint(self, module: Any, data: UDADataModule, portion: Decimal) -> str:
        """Key of all that labels depend on: weights, images, settings."""
        transform = data.target_transform
        parts = (self.thresholds, self.inference, self.spatial_prior, module.loss)
        settings = [_settings(part) for part in (*parts, transform.resize, transform.interpolation)]
        content = (_target(data).fingerprint(labels=False), portion, settings)
        digest = hashlib.sha256(repr((content, self.target_subset, self._target_images)).encode())
        if self._prior is not None:
            digest.update(self._prior.numpy().tobytes())
        for name, tensor in module.student.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _require_data(trainer: pl.Trainer) -> UDADataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, UDADataModule):
        raise ValueError("SelfTrainingRounds labels the target set of a UDADataModule; give the trainer one.")
    for name in ("source", "target"):
        dataset: SegmentationDataset | None = getattr(data, name)
        if dataset is None or not len(dataset):
            found = "isn't set" if dataset is None else "is empty"
            raise DatasetError(f"data.{name} {found}, but self-training needs images of both domains. Set it.")
    return data


def _target(data: UDADataModule) -> SegmentationDataset:
    return cast(SegmentationDataset, data.target)


def _require_one_size(data: UDADataModule, transforms: Mapping[str, TrainTransform]) -> None:
    sizes = {
        name: transform(data.reader(name).load_image(0), None, 0)[0].shape[:2] for name, transform in transforms.items()
    }
    if sizes["source"] != sizes["target"]:
        found = ", ".join(f"{height} x {width} for the {name}" for name, (height, width) in sizes.items())
        raise ValueError(
            f"Source and target images of self-training share batches, but their transforms give {found} (height x "
            "width); expected one size. Give data.source_transform and data.target_transform the same `crop`."
        )


def _set_max_steps(trainer: pl.Trainer, plan: RoundPlan) -> None:
    if trainer.max_steps == -1:
        trainer.fit_loop.epoch_loop.max_steps = plan.num_steps
    if trainer.max_steps > plan.num_steps:
        raise ValueError(
            f"trainer.max_steps: found {trainer.max_steps}, but the {plan.num_rounds} rounds end after "
            f"{plan.num_steps} steps. Leave it out, or set it to that number or less."
        )
    if trainer.max_steps < plan.num_steps and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        _log.warning(
            "trainer.max_steps is %d: training ends in round %d of %d, whose last step is %d",
            trainer.max_steps,
            plan.round_of(trainer.max_steps - 1) + 1,
            plan.num_rounds,
            plan.num_steps,
        )


def _is_made_from(folder: Path, made_from: str) -> bool:
    record = RoundRecord.read(folder)
    return record is not None and record.made_from == made_from


def _settings(part: object) -> str:
    """A part and the arguments it was made with, as text; a number or text as it is."""
    if not hasattr(part, "__dict__"):
        return repr(part)
    names = inspect.signature(type(part)).parameters
    return f"{type(part).__name__}({', '.join(f'{name}={_settings(getattr(part, name, None))}' for name in names)})"


def _truth(reader: LabelReader, index: int, label: Tensor) -> Tensor:
    size = label.shape[0], label.shape[1]
    return torch.from_numpy(resize_label(reader(index), size)).to(label.device)


def _sum_over_ranks(trainer: pl.Trainer, tensor: Tensor) -> Tensor:
    return cast(Tensor, trainer.strategy.reduce(tensor, reduce_op="sum"))


def _unseen(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    return items
