"""The data module: pairs labelled source images with unlabelled target images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from lightning_uda.data.cache import CachedDataset, CacheFormat, build_caches
from lightning_uda.data.check import counted, require_usable, suspicious_masks
from lightning_uda.data.dataset import DatasetError, SegmentationDataset, SizeLimit
from lightning_uda.data.margins import Margins
from lightning_uda.data.sampling import Origin, Sampling, Shuffled
from lightning_uda.data.sizes import crop_sizes, require_pairable, require_stackable
from lightning_uda.data.statistics import ClassStatistics, class_statistics
from lightning_uda.data.streams import LEFT_OUT, LabelReader, PairedStreams, Sample, SampleStream, collate
from lightning_uda.data.transforms import EvalTransform, TrainTransform
from lightning_uda.data.workers import WorkerLoader, start_training_worker, start_worker
from lightning_uda.files import NOTES_FILE
from lightning_uda.label_spaces import IGNORE_INDEX, UNKNOWN_INDEX, get_label_space
from lightning_uda.ranges import BATCH, POSITIVE, SEED, WORKERS, ranged

_log = logging.getLogger(__name__)
_STAGE_SETS = {"fit": ("source", "target", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
_STREAM_SET = {"source": "source", "target": "target", "template": "source", "labelled_target": "labelled_target"}
_LABELLED = ("source", "labelled_target")  # training sets whose labels are read
_SETS = ("source", "target", "labelled_target", "val", "test", "predict")
"""Dataset of each stream that the data module makes; callbacks feed all others."""


class UDADataModule(LightningDataModule):
    """Training batches of paired streams, and evaluation over labelled target images.

    A training batch is `{"source": {"image", "mask"}, "target": {"image"}}`: images uint8 (B, 3, H, W) RGB, masks
    uint8 (B, H, W) of train ids with 255 = void. Labels of the target set are never opened for training; with
    `target_margins` its images come with "valid", uint8 (B, H, W), which is 1 where pseudo-labels count. An evaluation
    batch is `{"image", "mask", "name"}`, a prediction batch `{"image", "name", "size", "frame"}`, with "original" if
    `keep_originals` is set: the images as they are in their files.

    Args:
        label_space: "cityscapes" (19 classes), "cityscapes16", "camvid", or the path of a YAML file with `classes`.
            The CLI hands it on to the method and, as `num_classes`, to the network.
        source: Labelled training images.
        target: Training images of the other domain, used without labels; `None` for source-only training.
        val: Labelled images scored during training and by `validate`.
        test: Labelled images scored by `test`; `None` takes `val`.
        predict: Images that `predict` runs on, labels not needed.
        labelled_target: A few target images with labels, for the stream of that name, which the term `Supervised` asks
            for; transformed as the target's.
        source_transform: Geometry of source images.
        target_transform: Geometry of target images.
        target_margins: Rows and columns at the borders of whole target images, after resizing, in which pseudo-labels
            don't count; read by DAFormer and T2S-DA. Padding doesn't count then either. `None` hands none on.
        eval_transform: Geometry of evaluation images; prediction uses its `resize` too.
        source_sampling: Which source images and crops the stream "source" shows: `Shuffled` or `RareClass`.
        target_sampling: The same for the stream "target", whose labels aren't read, so that it takes `Shuffled`.
        template_sampling: The same for the stream "template" of DSP, a second, independent draw from the source set.
        batch_size: Images of each stream in a batch, per process.
        eval_batch_size: Images in an evaluation batch; more than 1 needs images of one size.
        num_workers: Loader processes; changes speed only, never a batch.
        seed: Key of all streams. The CLI links it to `seed_everything`.
        check: Whether to check the datasets before training: headers of all images, all label ids, and sizes.
        leave_out_unreadable: Whether training goes on without a file that is gone or damaged when it is asked for:
            another sample of its stream takes its place, and the run names and counts such files at the end and in
            its notes. Otherwise it ends the run, as it does before training and in evaluation.
        max_megapixels: Million pixels that an image or a label map may have; larger ones are refused before they are
            decoded, and files, unpacked ones too, of more than 4 bytes for each of them before they are read.
        cache_dir: Folder for resized copies of images and source labels, made before a run where they are missing;
            `None` makes none. Sets whose transform has no `resize`, and `predict`, are read from their files. Pixels
            are the same either way.
        cache_format: "png" (lossless) or "memmap" (raw; about three times as large, five times as fast).
    """

    @ranged(batch_size=BATCH, eval_batch_size=BATCH, num_workers=WORKERS, seed=SEED, max_megapixels=POSITIVE)
    def __init__(
        self,
        label_space: str,
        source: SegmentationDataset | None = None,
        target: SegmentationDataset | None = None,
        val: SegmentationDataset | None = None,
        test: SegmentationDataset | None = None,
        predict: SegmentationDataset | None = None,
        labelled_target: SegmentationDataset | None = None,
        source_transform: TrainTransform = TrainTransform(),
        target_transform: TrainTransform = TrainTransform(),
        target_margins: Margins | None = None,
        eval_transform: EvalTransform = EvalTransform(),
        source_sampling: Sampling = Shuffled(),
        target_sampling: Sampling = Shuffled(),
        template_sampling: Sampling = Shuffled(),
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        seed: int = 0,
        check: bool = True,
        leave_out_unreadable: bool = False,
        max_megapixels: float = 100.0,
        cache_dir: str | None = None,
        cache_format: CacheFormat = "png",
    ) -> None:
        super().__init__()
        self.label_space = get_label_space(label_space)
        self.source = source
        self.target = target
        self.val = val
        self.test = test if test is not None else val
        self.predict = predict
        self.labelled_target = labelled_target
        self.source_transform = source_transform
        self.target_transform = target_transform
        self.target_margins = target_margins
        self.eval_transform = eval_transform
        self.samplings = {
            **{"source": source_sampling, "target": target_sampling, "template": template_sampling},
            "labelled_target": Shuffled(),
        }
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.check = check
        self.leave_out_unreadable = leave_out_unreadable
        self.keep_originals = False
        self._left_out: Counter[str] = Counter()
        self._folder: Path | None = None
        self.cache_dir = cache_dir
        self.cache_format: CacheFormat = cache_format
        self._cached: dict[str, CachedDataset] = {}
        self._statistics: dict[str, ClassStatistics] = {}
        self._fed: dict[str, Callable[[], SampleStream]] = {}
        self._checked: dict[str, int] = {}  # datasets that were checked, with the images that a batch needs of each
        for dataset in self.datasets.values():
            dataset.size_limit = SizeLimit(max_megapixels)

    def feed(self, stream: str, make: Callable[[], SampleStream]) -> None:
        """Lets a callback supply a stream that a method names, such as "tail"; called in the callback's `setup`.

        Datasets that it reads come from `reader`, `label_reader` and `train_transform`, or all of them from `origin`.

        Args:
            stream: Any name; one of the data module's own streams is replaced.
            make: Makes it, each time a training loader is made.
        """
        self._fed[stream] = make

    @property
    def datasets(self) -> dict[str, SegmentationDataset]:
        """The datasets that are set, by the name of their argument."""
        sets = {name: getattr(self, name) for name in _SETS}
        if self.test is self.val:
            del sets["test"]
        return {name: dataset for name, dataset in sets.items() if dataset is not None}

    def prepare_data(self) -> None:
        """Checks the datasets that the running stage needs, counts what samplings need, and completes the caches.

        Raises:
            DatasetError: If one is missing or can't be used; the message lists every problem. If images that share a
                batch or are mixed differ in size. If a cache can't be written or wouldn't fit on the disk.
            ValueError: If a sampling doesn't fit its dataset, or the margins leave nothing of the first target image.
        """
        stage = "fit" if self.trainer is None else str(self.trainer.state.fn.value)  # type: ignore[union-attr]
        chosen = self.check_datasets(stage, self._streams_wanted())
        names = tuple(chosen)
        for name in set(_LABELLED).intersection(names):
            if chosen[name].sizes_may_differ and self.train_transform(name).resize is None:
                transform = "source_transform" if name == "source" else "target_transform"
                raise DatasetError(
                    f"data.{transform}.resize isn't set, but {type(chosen[name]).__name__} has pairs whose image and "
                    "label differ in size. Set it; it brings both to one size."
                )
        if self.check:
            for name in {"val", "test"}.intersection(names):
                require_stackable(name, chosen[name], self.eval_transform, self.eval_batch_size)
        if stage == "fit":
            self._prepare_streams()
        readers = [self.reader(name) for name in names]
        caches = [reader for reader in readers if isinstance(reader, CachedDataset)]
        build_caches(caches, workers=None if self.num_workers else 0)

    def check_datasets(self, stage: str, streams: Sequence[str]) -> dict[str, SegmentationDataset]:
        """Checks the datasets that a stage needs, each once.

        `prepare_data` calls it; the command line does before it makes the method, which may fetch weights from
        elsewhere.

        Args:
            stage: "fit", "validate", "test" or "predict".
            streams: The streams of the method.

        Returns:
            The datasets by the names of their arguments.

        Raises:
            DatasetError: If one is missing or can't be used; the message lists every problem.
        """
        own = [name for name in streams if name in _STREAM_SET] if stage == "fit" else []
        names = _STAGE_SETS[stage]
        if stage == "fit":
            names = (*self._training_sets(streams), *(("val",) if self.val is not None else ()))
        chosen = {name: self._require(name) for name in names}
        for name, dataset in chosen.items():
            self._require_classes(name, dataset)
        batch_size = {_STREAM_SET[name]: self.batch_size for name in own if name != "labelled_target"}
        left = {name: dataset for name, dataset in chosen.items() if self._checked.get(name) != batch_size.get(name, 1)}
        if self.check and left:
            require_usable(left, batch_size, unlabelled=("target", "predict"))
            self._warn_before_training(left)
            self._checked |= {name: batch_size.get(name, 1) for name in left}
        return chosen

    def setup(self, stage: str) -> None:
        """Checks that label spaces and datasets have classes in common; asks for the run folder, as all ranks must.

        Raises:
            DatasetError: If a set has no labels but needs them, or no class of the label space.
        """
        folder = self.trainer.log_dir if self.trainer is not None and self.trainer.loggers else None
        self._folder = None if folder is None else Path(folder)
        for name, dataset in self.datasets.items():
            self._warn_of_foreign_names(name, dataset)
            self._require_classes(name, dataset)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Takes from a training batch what it says of files that were left out, and names each once."""
        for error in batch.pop(LEFT_OUT, ()) if isinstance(batch, dict) else ():
            if error not in self._left_out:
                _log.warning("left out of training: %s", error)
            self._left_out[error] += 1
        return batch

    def teardown(self, stage: str) -> None:
        """Says which files training left out."""
        if stage == "fit":
            self._report_left_out()

    def on_exception(self, exception: BaseException) -> None:
        """The same of a run that ends early."""
        self._report_left_out()

    def _report_left_out(self) -> None:
        left_out, self._left_out = self._left_out, Counter()
        if not left_out:
            return
        samples, files = counted(left_out.total(), "sample"), counted(len(left_out), "file")
        named = "; ".join(f"{error} ({counted(count, 'time')})" for error, count in left_out.items())
        note = f"left out of training: {samples}, as {files} couldn't be read: {named}"
        _log.warning("%s", note)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / NOTES_FILE).open("a", encoding="utf-8") as file:
                file.write(f"{note}\n")

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless paired batches of the streams that the method declares, from the trainer's step on."""
        self._refuse_short_epochs()
        streams = {name: self._stream(name) for name in self._streams_wanted()}
        done = 0 if self.trainer is None else self.trainer.global_step * self.trainer.accumulate_grad_batches
        paired = PairedStreams(streams, self.batch_size, done, *self._rank, self.leave_out_unreadable)
        return WorkerLoader(
            paired,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self._pin_memory,
            worker_init_fn=start_worker if torch.cuda.is_available() else start_training_worker,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Every image of `val` once, in order, shared out over the ranks; nothing if `val` isn't set."""
        return [] if self.val is None else self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every image of `test` once, in order."""
        return self._eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every image of `predict` once, in order, with its own size."""
        images = EvaluationImages(self._require("predict"), self.eval_transform, None, self.keep_originals)
        return self._evaluation_loader(images, batch_size=1)

    def target_dataloader(self, num_images: int, batch_size: int) -> DataLoader[Any]:
        """Target training images in the geometry of evaluation, without labels: `num_images` evenly spread ones.

        Gives lists of batches: one batch, or one for each size among `batch_size` images.
        """
        images = EvaluationImages(self._require("target"), self.eval_transform, None)
        return self._sized_loader(images, num_images, batch_size)

    def labelled_dataloader(self, name: str, num_images: int | None = None) -> DataLoader[Any]:
        """Images of a set with labels, in the geometry of evaluation, with their masks; read from their files.

        Args:
            name: Of the set, such as "source", whose training geometry isn't used.
            num_images: How many, evenly spread; `None` takes all.

        Returns:
            A loader of lists of batches: one batch, or one for each size among `eval_batch_size` images.

        Raises:
            DatasetError: If the set isn't there.
        """
        dataset = self._require(name)
        images = EvaluationImages(dataset, self.eval_transform, LabelReader(dataset, self._table(dataset)))
        return self._sized_loader(images, len(images) if num_images is None else num_images, self.eval_batch_size)

    def _sized_loader(self, images: EvaluationImages, num_images: int, batch_size: int) -> DataLoader[Any]:
        """Evenly spread images, in lists of batches of one size."""
        chosen = np.unique(np.linspace(0, len(images) - 1, min(num_images, len(images))).round().astype(int))
        return WorkerLoader(
            Subset(images, chosen.tolist()),
            batch_size=batch_size,
            num_workers=self.num_workers,
            collate_fn=_collate_by_size,
            pin_memory=self._pin_memory,
            worker_init_fn=start_worker,
        )

    def _refuse_short_epochs(self) -> None:
        trainer = self.trainer
        if trainer is None or isinstance(trainer.limit_train_batches, float):
            return
        if trainer.limit_train_batches < trainer.max_steps * trainer.accumulate_grad_batches:
            raise ValueError(
                f"trainer.limit_train_batches: found {trainer.limit_train_batches}, which would show the same batches "
                "in every epoch; the streams are endless. Leave it out and set trainer.max_steps."
            )

    def _eval_dataloader(self, name: str) -> DataLoader[Any]:
        images = EvaluationImages(self.reader(name), self.eval_transform, self.label_reader(name))
        return self._evaluation_loader(images, self.eval_batch_size)

    def _evaluation_loader(self, images: EvaluationImages, batch_size: int) -> DataLoader[Any]:
        rank, world_size = self._rank
        return WorkerLoader(
            images,
            batch_size=batch_size,
            sampler=RankSampler(images, world_size, rank) if world_size > 1 else None,
            num_workers=self.num_workers,
            collate_fn=collate_evaluation,
            pin_memory=self._pin_memory,
            worker_init_fn=start_worker,
        )

    def _require_classes(self, name: str, dataset: SegmentationDataset) -> None:
        if name in (*_LABELLED, "val", "test") and not dataset.has_labels:
            raise DatasetError(f"data.{name} has no labels, which it needs. Give it a `labels` folder.")
        if dataset.has_labels and (self._table(dataset) >= UNKNOWN_INDEX).all():
            raise DatasetError(
                f"data.{name}: none of its classes {sorted({c for c in dataset.class_ids.values() if c})} is in "
                f"the label space {self.label_space.name!r} {list(self.label_space.classes)}."
            )

    def _warn_before_training(self, datasets: Mapping[str, SegmentationDataset]) -> None:
        """Says what datasets remark of themselves, and which labels may be lost as void, once for each set."""
        for name, dataset in datasets.items():
            if name in self._checked:
                continue
            found = [(name, remark) for remark in dataset.remarks()]
            if name in (*_LABELLED, "val", "test"):
                for number, part in enumerate(dataset.sets):
                    where = name if part is dataset else f"{name}, set {number}"
                    if part.raw_counts is not None:
                        lost = suspicious_masks(part, self.label_space, part.raw_counts)
                        found += [(where, problem) for problem in lost]
            for where, remark in found:
                _log.warning("data.%s: %s: %s", where, remark.where, remark.what)

    def _warn_of_foreign_names(self, name: str, dataset: SegmentationDataset) -> None:
        named = {class_name for class_name in dataset.class_ids.values() if class_name is not None}
        if foreign := sorted(named - set(self.label_space.classes)):
            _log.warning("data.%s: %s are not in label space %r: void", name, foreign, self.label_space.name)
        if name == "source" and (missing := sorted(set(self.label_space.classes) - named)):
            _log.warning("data.source: has no label for %s: never learned", missing)

    def _stream(self, name: str) -> SampleStream:
        if name in self._fed:
            return self._fed[name]()
        if name not in _STREAM_SET:
            fed = f"; callbacks feed {', '.join(self._fed)}" if self._fed else ""
            raise ValueError(
                f"{type(self._module).__name__} needs the stream {name!r}, but nobody supplies it. The data module "
                f"makes {', '.join(_STREAM_SET)}{fed}. Add the callback that feeds it (UDADataModule.feed) to "
                "trainer.callbacks, or name another stream in the method's `streams`."
            )
        return self._own_stream(name)

    def _own_stream(self, name: str) -> SampleStream:
        """A stream that the data module makes, by its sampling."""
        dataset = _STREAM_SET[name]
        return self.samplings[name].stream(self.origin(name, dataset), lambda: self.statistics(dataset))

    def _own_streams(self) -> list[str]:
        """Those of the method's streams that the data module makes."""
        return [name for name in self._streams_wanted() if name in _STREAM_SET]

    def _training_sets(self, streams: Sequence[str]) -> list[str]:
        """Datasets that a method's streams read; a stream that a callback feeds may read any training set."""
        own = [_STREAM_SET[name] for name in streams if name in _STREAM_SET]
        fed = len(own) < len(streams)
        others = [name for name in ("source", "target") if fed and getattr(self, name) is not None]
        return list(dict.fromkeys((*own, *others)))

    def _prepare_streams(self) -> None:
        """Compares the sizes that the streams show, and makes each once, so that what their samplings need is counted.

        A method whose attribute `mixes_streams` is true needs one size in all of them.
        """
        if self.check:
            sets = dict.fromkeys(_STREAM_SET[name] for name in self._own_streams())
            sizes = {name: crop_sizes(self._require(name), self.train_transform(name)) for name in sets}
            mixes = getattr(self._module, "mixes_streams", False)
            require_pairable(sizes, self.batch_size, type(self._module).__name__ if mixes else None)
        if self.target_margins is not None and "target" in self._own_streams():
            self.target_margins.require_room(self.target_transform.resize or self._require("target").image_size(0))
        for name in self._own_streams():
            self._own_stream(name)

    def origin(self, stream: str, dataset: str) -> Origin:
        """What a stream draws from: one of the training sets, with its labels unless it is "target"."""
        return Origin(
            stream,
            self.reader(dataset),
            self.label_reader(dataset) if dataset in _LABELLED else None,
            self.train_transform(dataset),
            self.seed,
            self.batch_size * self._rank[1],
            self.target_margins if dataset == "target" else None,
        )

    def statistics(self, name: str) -> ClassStatistics:
        """How often each class occurs in the label files of a dataset: counted once, then read from `cache_dir`."""
        if name not in self._statistics:
            self._statistics[name] = class_statistics(self._require(name), self.label_space, self.cache_dir)
        return self._statistics[name]

    def label_reader(self, name: str) -> LabelReader:
        """Reads the label maps of one of the datasets as train ids, resized if they are cached."""
        dataset = self.reader(name)
        return LabelReader(dataset, self._table(dataset))

    def train_transform(self, name: str) -> TrainTransform:
        """Geometry of a dataset's images in training."""
        return self.source_transform if name == "source" else self.target_transform

    def reader(self, name: str) -> SegmentationDataset:
        """What a set's images are read from: its cache, or the set itself where resizing would change nothing."""
        dataset = self._require(name)
        evaluated = name in ("val", "test")
        transform = self.eval_transform if evaluated else self.train_transform(name)
        if self.cache_dir is None or transform.resize is None or name == "predict":
            return dataset
        if name not in self._cached:
            labels = self.eval_transform.labels == "resized" if evaluated else name in _LABELLED
            self._cached[name] = CachedDataset(
                dataset, self.cache_dir, transform.resize, transform.interpolation, labels, self.cache_format
            )
        return self._cached[name]

    def _streams_wanted(self) -> Sequence[str]:
        if self._module is None:
            return [name for name in ("source", "target") if getattr(self, name) is not None]
        return list(self._module.streams)

    @property
    def _module(self) -> Any:
        """The method in training, `None` without a trainer."""
        return None if self.trainer is None else self.trainer.lightning_module

    def _require(self, name: str) -> SegmentationDataset:
        dataset: SegmentationDataset | None = getattr(self, name)
        if dataset is None:
            raise DatasetError(f"data.{name} isn't set, but this run needs it. Set it in the data config.")
        return dataset

    def _table(self, dataset: SegmentationDataset) -> Any:
        unlisted = UNKNOWN_INDEX if dataset.strict_ids else IGNORE_INDEX
        return self.label_space.lookup_table(dataset.class_ids, unlisted)

    @property
    def _rank(self) -> tuple[int, int]:
        """This process among the distributed ones, and their number."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def _pin_memory(self) -> bool:
        return torch.cuda.is_available()


class RankSampler(DistributedSampler[Any]):
    """Every `num_replicas`-th image for each rank.

    Unlike its base it gives no image to two ranks to even out their numbers, so counts over all ranks are exact. The
    trainer leaves a distributed sampler as it is.
    """

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank, ascending."""
        return iter(self._indices)

    def __len__(self) -> int:
        """Number of images of this rank."""
        return len(self._indices)

    @property
    def _indices(self) -> range:
        return range(self.rank, len(self.dataset), self.num_replicas)  # type: ignore[arg-type]


class EvaluationImages(Dataset[dict[str, Any]]):
    """Images in their order, for validation, test and prediction.

    Args:
        dataset: Where images come from.
        transform: Geometry.
        label_reader: Gives label maps; `None` where there are none.
        keep_originals: Whether images without a label map come as they are in their files too.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        transform: EvalTransform,
        label_reader: LabelReader | None,
        keep_originals: bool = False,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.label_reader = label_reader
        self.keep_originals = keep_originals

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An image with its mask, or with what its prediction needs.

        Returns:
            "image", uint8 (3, H, W), and "name"; "mask", uint8 (H', W'), or, without one, "size", the file's (height,
            width), "frame", see `SegmentationDataset.frame`, and, if wanted, "original", uint8 (H, W, 3).
        """
        original = self.dataset.load_image(index)
        mask = None if self.label_reader is None else self.label_reader(index)
        image, mask = self.transform(original, mask)
        found = {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "name": self.dataset.name(index)}
        if mask is not None:
            return {**found, "mask": np.ascontiguousarray(mask)}
        found |= {"size": original.shape[:2], "frame": self.dataset.frame(index)}
        return {**found, "original": original} if self.keep_originals else found


def collate_evaluation(items: list[dict[str, Any]]) -> dict[str, Tensor | list[Any]]:
    """Stacks images and masks of evaluation items; all else stays lists."""
    arrays: list[Sample] = [{key: item[key] for key in ("image", "mask") if key in item} for item in items]
    batch: Mapping[str, Tensor] = collate("evaluation", arrays)
    lists: dict[str, list[Any]] = {key: [item[key] for item in items] for key in items[0] if key not in batch}
    return {**batch, **lists}


def _collate_by_size(items: list[dict[str, Any]]) -> list[dict[str, Tensor | list[Any]]]:
    by_size: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for item in items:
        sizes = tuple(item[key].shape for key in ("image", "mask") if key in item)
        by_size.setdefault(sizes, []).append(item)
    return [collate_evaluation(alike) for alike in by_size.values()]
