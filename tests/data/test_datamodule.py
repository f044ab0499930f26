import zlib
from itertools import islice

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_uda.data import statistics
from lightning_uda.data.dataset import DatasetError, Problem
from lightning_uda.data.sampling import RareClass, Shuffled
from lightning_uda.data.sizes import crop_sizes
from lightning_uda.data.transforms import EvalTransform, TrainTransform
from lightning_uda.methods import DACS, DSP, SourceOnly
from tests.fixtures.tiny import TinyDataset, tiny_data, tiny_network

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class BrokenDataset(TinyDataset):
    def check(self, labels=True):
        return [Problem("street.png", "the file is cut off. Copy it again.")]


def test_a_set_with_unequal_pairs_needs_a_size(monkeypatch):
    data = tiny_data()
    monkeypatch.setattr(data.source, "sizes_may_differ", True)
    with pytest.raises(DatasetError, match=r"source_transform\.resize isn't set, but TinyDataset has pairs"):
        data.prepare_data()
    data.source_transform = TrainTransform(resize=(24, 32))
    data.prepare_data()


def test_training_batches_hold_what_the_method_declares():
    seen = []

    class Seen(SourceOnly):
        def training_step(self, batch, batch_idx):
            seen.append(set(batch))
            return super().training_step(batch, batch_idx)

    module = Seen(network=tiny_network(), label_space="camvid")
    Trainer(max_steps=1, **QUIET).fit(module, datamodule=tiny_data(val=None))
    assert seen == [{"source"}]
    assert set(next(iter(tiny_data().train_dataloader()))) == {"source", "target"}


def test_workers_don_not_change_the_batches_of_the_data_module():
    runs = [list(islice(tiny_data(num_workers=n).train_dataloader(), 6)) for n in (0, 1, 3)]
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a["source"]["image"], b["source"]["image"])
            assert torch.equal(a["source"]["mask"], b["source"]["mask"])
            assert torch.equal(a["target"]["image"], b["target"]["image"])


def test_a_labelled_target_set_is_used_without_its_labels():
    class Sealed(TinyDataset):
        def load_label(self, index):
            raise AssertionError("a target label was opened")

        def check(self, labels=True):
            assert not labels
            return []

    data = tiny_data(target=Sealed(length=7, seed=2))
    Trainer(max_steps=4, **QUIET).fit(DACS(network=tiny_network(), label_space="camvid"), datamodule=data)


def test_evaluation_batches_come_in_order_with_names_and_native_masks():
    data = tiny_data(eval_transform=EvalTransform(resize=(12, 16)))
    batches = list(data.val_dataloader())
    assert [batch["name"][0] for batch in batches] == ["tiny_3_0", "tiny_3_1", "tiny_3_2"]
    assert batches[0]["image"].shape == (1, 3, 12, 16)
    assert batches[0]["mask"].shape == (1, 24, 32)
    resized = tiny_data(eval_transform=EvalTransform(resize=(12, 16), labels="resized"))
    assert next(iter(resized.val_dataloader()))["mask"].shape == (1, 12, 16)
    assert list(next(iter(tiny_data(predict=TinyDataset()).predict_dataloader()))) == ["image", "name", "size", "frame"]


def test_problems_of_all_sets_stop_the_run_in_one_message():
    data = tiny_data(source=BrokenDataset(), target=TinyDataset(length=1))
    with pytest.raises(DatasetError) as error:
        Trainer(max_steps=1, **QUIET).fit(DACS(network=tiny_network(), label_space="camvid"), datamodule=data)
    message = str(error.value)
    assert "data.source (10 images):\n  - street.png: the file is cut off. Copy it again." in message
    assert "data.target (1 image):\n  - found 1 image, expected at least one batch of 2" in message


def test_checking_can_be_left_out():
    data = tiny_data(source=BrokenDataset(), check=False)
    Trainer(max_steps=1, **QUIET).fit(SourceOnly(network=tiny_network(), label_space="camvid"), datamodule=data)


def test_sets_without_labels_or_without_common_classes_are_refused():
    with pytest.raises(DatasetError, match=r"data\.source has no labels, which it needs"):
        tiny_data(source=TinyDataset(has_labels=False)).setup("fit")
    foreign = TinyDataset()
    foreign.class_ids = {0: "mountain", 1: None}
    with pytest.raises(DatasetError, match=r"data\.val: none of its classes \['mountain'\] is in the label space"):
        tiny_data(val=foreign).setup("fit")


def test_a_stage_without_its_dataset_is_refused():
    data = tiny_data(val=None)
    with pytest.raises(DatasetError, match=r"data\.predict isn't set"):
        Trainer(logger=False, **{k: v for k, v in QUIET.items() if k != "logger"}).predict(
            SourceOnly(network=tiny_network(), label_space="camvid"), datamodule=data
        )
    with pytest.raises(DatasetError, match=r"data\.val isn't set"):
        Trainer(**QUIET).validate(SourceOnly(network=tiny_network(), label_space="camvid"), datamodule=data)


def test_epochs_that_would_repeat_batches_and_empty_batches_are_refused():
    trainer = Trainer(max_steps=6, limit_train_batches=2, **QUIET)
    with pytest.raises(ValueError, match=r"limit_train_batches: found 2, which would show the same batches"):
        trainer.fit(SourceOnly(network=tiny_network(), label_space="camvid"), datamodule=tiny_data(val=None))
    with pytest.raises(ValueError, match=r"batch_size: found 0"):
        tiny_data(batch_size=0)


def test_class_names_that_meet_nothing_are_warned_of(caplog):
    dataset = TinyDataset()
    dataset.class_ids = {0: "Sky", 1: "Raod"}
    tiny_data(source=dataset, target=None, val=None).setup("fit")
    assert "data.source: ['Raod'] are not in label space 'camvid'" in caplog.text
    assert "data.source: has no label for ['Bicyclist'" in caplog.text


def test_labels_of_different_sizes_in_one_evaluation_batch_are_an_error_that_says_what_to_do():
    class Mixed(TinyDataset):
        def load_label(self, index):
            return super().load_label(index)[: 24 - 4 * index]

    data = tiny_data(val=Mixed(length=2), eval_batch_size=2)
    with pytest.raises(DatasetError, match="masks of one evaluation batch differ in size"):
        next(iter(data.val_dataloader()))


class Frozen(TinyDataset):
    """Stands for a TinyDataset whose images can't be read any more."""

    __module__, __qualname__ = TinyDataset.__module__, TinyDataset.__qualname__

    def load_image(self, index):
        raise AssertionError("an image was read from the dataset")


Frozen.__name__ = "TinyDataset"

RESIZED = {
    "source_transform": TrainTransform(resize=(18, 24), interpolation="bicubic", crop=(16, 16), horizontal_flip=0.5),
    "target_transform": TrainTransform(resize=(16, 20), crop=(16, 16)),
}


def cached_data(folder, cache_format="png", dataset=TinyDataset, labels="native", **kwargs):
    sets = {
        "source": dataset(seed=1),
        "target": dataset(length=7, seed=2, has_labels=False),
        "val": dataset(length=3, seed=3),
    }
    evaluation = EvalTransform(resize=(12, 16), labels=labels)
    settings = {**RESIZED, **sets, "eval_transform": evaluation, "cache_dir": folder and str(folder), **kwargs}
    return tiny_data(cache_format=cache_format, **settings)


@pytest.mark.parametrize("labels", ["native", "resized"])
@pytest.mark.parametrize("cache_format", ["png", "memmap"])
def test_a_cache_changes_no_batch(tmp_path, cache_format, labels):
    plain = cached_data(None, labels=labels)
    cached_data(tmp_path, cache_format, labels=labels).prepare_data()
    built = cached_data(tmp_path, cache_format, Frozen, labels, num_workers=2)
    for a, b in zip(islice(plain.train_dataloader(), 6), islice(built.train_dataloader(), 6), strict=True):
        assert torch.equal(a["source"]["image"], b["source"]["image"])
        assert torch.equal(a["source"]["mask"], b["source"]["mask"])
        assert torch.equal(a["target"]["image"], b["target"]["image"])
    for a, b in zip(plain.val_dataloader(), built.val_dataloader(), strict=True):
        assert list(a) == list(b)
        assert a["name"] == b["name"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])
    assert a["mask"].shape[1:] == ((24, 32) if labels == "native" else (12, 16))


def test_without_its_files_a_cache_changes_no_batch_either(tmp_path):
    a, b = (next(iter(cached_data(folder).train_dataloader())) for folder in (None, tmp_path))
    assert torch.equal(a["source"]["image"], b["source"]["image"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_builds_the_caches_it_needs_before_training(tmp_path):
    data = cached_data(tmp_path, val=None)
    Trainer(max_steps=2, **QUIET).fit(DACS(network=tiny_network(), label_space="camvid"), datamodule=data)
    kinds = sorted(folder.name.rsplit("-", 1)[0] for folder in tmp_path.iterdir())
    assert kinds == [
        "TinyDataset-images-16x20-bilinear-png",
        "TinyDataset-images-18x24-bicubic-png",
        "TinyDataset-labels-18x24-nearest-png",
    ]
    assert sorted(len(list(folder.glob("*.png"))) for folder in tmp_path.iterdir()) == [7, 10, 10]


def test_prediction_and_sets_that_are_not_resized_are_read_from_their_files(tmp_path):
    data = cached_data(tmp_path, predict=TinyDataset(length=2, seed=9))
    batch = next(iter(data.predict_dataloader()))
    assert batch["size"] == [(24, 32)]
    assert batch["image"].shape == (1, 3, 12, 16)
    whole = cached_data(tmp_path, source_transform=TrainTransform(), target_transform=TrainTransform(), val=None)
    whole.prepare_data()
    assert next(iter(whole.train_dataloader()))["source"]["image"].shape == (2, 3, 24, 32)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_does_not_fit_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_uda.data.cache.free_bytes", lambda folder: 1000)
    with pytest.raises(DatasetError, match=r"the cache needs about .* but only 0\.0 MB are free"):
        Trainer(max_steps=1, **QUIET).fit(
            DACS(network=tiny_network(), label_space="camvid"), datamodule=cached_data(tmp_path)
        )
    assert list(tmp_path.iterdir()) == []


class Uneven(TinyDataset):
    """Every second image is lower by eight rows; sizes come from a header, as those of files do."""

    def load_image(self, index):
        return super().load_image(index)[index % 2 * 8 :]

    def load_label(self, index):
        return super().load_label(index)[index % 2 * 8 :]

    def image_size(self, index):
        return self.size[0] - index % 2 * 8, self.size[1]


def fit(module, callbacks=(), **settings):
    trainer = Trainer(max_steps=2, callbacks=[*callbacks], **QUIET)
    data = tiny_data(**{"val": None, **settings})
    trainer.fit(module(network=tiny_network(), label_space="camvid"), datamodule=data)
    return data


class Untrained(SourceOnly):
    """Fails if a step is reached."""

    def training_step(self, batch, batch_idx):
        raise AssertionError("training began")


class Mixing(Untrained):
    streams = ("source", "template", "target")
    mixes_streams = True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_transform": TrainTransform(crop=(12, 16))},
            r"Mixing mixes images of its streams, so they must have one size: found 16 x 16 in data\.source, 12 x 16 "
            r"in data\.target \(height x width\)\. Give the same `crop` to data\.source_transform and data\.target_",
        ),
        (
            {"target_transform": TrainTransform(resize=(16, 20))},
            r"found 16 x 16 in data\.source, 16 x 20 in data\.t",
        ),
        ({"source_transform": TrainTransform()}, r"found 24 x 32 in data\.source, 16 x 16 in data\.target"),
        (
            {"target": Uneven(length=7), "target_transform": TrainTransform(), "batch_size": 1},
            r"found 16 x 16 in data\.source, 16 x 32 and 24 x 32 in data\.target",
        ),
        (
            {"target": Uneven(length=7), "target_transform": TrainTransform()},
            r"can't share a batch of 2: found 16 x 32 and 24 x 32 in data\.target \(height x width\); expected one size"
            r"\. Set `crop` or `resize` in data\.target_transform, or data\.batch_size to 1",
        ),
    ],
)
def test_crops_that_do_not_fit_are_refused_before_training(settings, message):
    with pytest.raises(DatasetError, match=message):
        fit(Mixing, **settings)


def test_nothing_is_cached_for_a_run_that_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="Mixing mixes images"):
        fit(Mixing, target_transform=TrainTransform(resize=(8, 8)), cache_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_sizes_matter_only_where_images_meet():
    small = TrainTransform(crop=(12, 16))
    fit(SourceOnly, target_transform=small)
    fit(SourceOnly, target=Uneven(length=7), target_transform=TrainTransform())
    fit(SourceOnly, source=Uneven(), source_transform=TrainTransform(), batch_size=1)
    fit(SourceOnly, source=Uneven(), source_transform=TrainTransform(resize=(24, 32)))
    fit(DACS, source=Uneven(), source_transform=small, target_transform=small)
    with pytest.raises(DatasetError, match=r"images of one source batch differ in size"):  # not asked before
        fit(Untrained, source=Uneven(), source_transform=TrainTransform(), check=False)


@pytest.mark.parametrize("method", [DACS, DSP])
def test_methods_that_mix_say_so(method):
    with pytest.raises(DatasetError, match=f"{method.__name__} mixes images of its streams"):
        fit(method, target_transform=TrainTransform(crop=(12, 16)))


def test_evaluation_batches_of_several_sizes_are_refused_before_training(tmp_path):
    for transform, found in ((EvalTransform(), "images 16 x 32 and 24 x 32"), (EvalTransform((8, 8)), "images 8 x 8")):
        with pytest.raises(DatasetError, match=rf"eval_batch_size: found 2, but the 3 images of data.val.*{found}"):
            fit(Untrained, val=Uneven(length=3), eval_batch_size=2, eval_transform=transform, cache_dir=str(tmp_path))
    fit(SourceOnly, val=Uneven(length=3), eval_batch_size=2, eval_transform=EvalTransform((8, 8), labels="resized"))
    fit(SourceOnly, val=Uneven(length=3), eval_batch_size=1)


def test_sizes_are_read_from_headers_and_only_where_they_can_differ():
    class Sealed(Uneven):
        def load_image(self, index):
            raise AssertionError("an image was decoded")

    assert crop_sizes(Sealed(), TrainTransform()) == [(16, 32), (24, 32)]
    assert crop_sizes(Sealed(), TrainTransform(crop=(40, 50), horizontal_flip=0.5)) == [(40, 50)]
    Sealed.image_size = Sealed.load_image
    assert crop_sizes(Sealed(), TrainTransform(resize=(8, 9))) == [(8, 9)]
    assert crop_sizes(TinyDataset(), TrainTransform()) == [(24, 32)]  # a reader that has to decode


# streams


class Memory(Callback):
    """A stranger's callback: feeds a stream of its own from the source set."""

    def setup(self, trainer, pl_module, stage):
        data = trainer.datamodule
        data.feed("memory", lambda: Shuffled().stream(data.origin("memory", "source"), lambda: None))


class Remembering(SourceOnly):
    """A stranger's method: trains on that stream alone."""

    streams = ("memory",)

    def training_step(self, batch, batch_idx):
        assert set(batch) == {"memory"}
        return super().training_step({"source": batch["memory"]}, batch_idx)


def test_callbacks_may_feed_any_stream(tmp_path):
    data = fit(Remembering, [Memory()], **RESIZED, cache_dir=str(tmp_path))
    stream = data._fed["memory"]()
    assert stream.key == (0, zlib.crc32(b"memory"))
    kinds = sorted(folder.name.rsplit("-", 4)[0] for folder in tmp_path.iterdir())
    assert kinds == ["TinyDataset-images", "TinyDataset-images", "TinyDataset-labels"]  # what it may read is prepared


def test_what_a_fed_stream_may_read_is_checked():
    with pytest.raises(DatasetError, match=r"street\.png: the file is cut off"):
        fit(Remembering, [Memory()], source=BrokenDataset())


def test_a_stream_that_nobody_feeds_is_one_message():
    class Lost(Untrained):
        streams = ("source", "memroy")

    with pytest.raises(
        ValueError,
        match=r"Lost needs the stream 'memroy', but nobody supplies it\. The data module makes source, target, "
        r"template, labelled_target; callbacks feed memory\. Add the callback",
    ):
        fit(Lost, [Memory()])


# samplings

RARE = {"source_sampling": RareClass(temperature=0.05, min_pixels=50)}


def test_a_method_trains_on_rare_classes_counted_once_before_training(tmp_path, monkeypatch):
    counted, seen = [], []
    count = statistics._count
    monkeypatch.setattr(statistics, "_count", lambda *a: counted.append(len(seen)) or count(*a))

    class Seen(DACS):
        def training_step(self, batch, batch_idx):
            seen.append(batch["source"]["mask"].clone())
            return super().training_step(batch, batch_idx)

    data = fit(Seen, **RARE, cache_dir=str(tmp_path))
    assert counted == [0]
    stream = RARE["source_sampling"].stream(data.origin("source", "source"), lambda: data.statistics("source"))
    expected = [torch.from_numpy(stream.sample(position)["mask"]) for position in range(4)]
    assert torch.equal(torch.cat(seen), torch.stack(expected))
    fit(Seen, **RARE, cache_dir=str(tmp_path))
    assert counted == [0]


def test_only_the_stream_that_is_named_changes():
    plain, rare = (next(iter(tiny_data(**settings).train_dataloader())) for settings in ({}, RARE))
    assert torch.equal(plain["target"]["image"], rare["target"]["image"])
    assert not torch.equal(plain["source"]["image"], rare["source"]["image"])


def test_the_template_has_a_sampling_of_its_own():
    class Template(SourceOnly):
        streams = ("source", "template")

    data = fit(Template, template_sampling=RareClass(min_pixels=50))
    assert [type(data._stream(name)).__name__ for name in Template.streams] == ["Stream", "RareClassStream"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sampling": RareClass()}, r"stream 'target', whose labels are never opened"),
        ({"source_sampling": RareClass()}, r"more than min_pixels=3000 pixels"),
    ],
)
def test_a_sampling_that_does_not_fit_is_refused_before_training(settings, message):
    with pytest.raises(ValueError, match=message):
        fit(Mixing, **settings)


def test_labelled_images_come_in_the_geometry_of_evaluation_in_batches_of_one_size():
    class Uneven(TinyDataset):
        """The second of three images is wider, and the masks of all are twice as large."""

        sizes_may_differ = True

        def load_image(self, index):
            return np.full((24, 40 if index == 1 else 32, 3), index, np.uint8)

        def load_label(self, index):
            return np.full((48, 80 if index == 1 else 64), index, np.uint8)

    data = tiny_data(source=Uneven(3), source_transform=TrainTransform(resize=(12, 16), crop=(8, 8)), eval_batch_size=3)
    (batches,) = data.labelled_dataloader("source")
    assert [batch["image"].shape for batch in batches] == [(2, 3, 24, 32), (1, 3, 24, 40)]
    assert [batch["mask"].shape for batch in batches] == [(2, 48, 64), (1, 48, 80)]
    assert [batch["image"][:, 0, 0, 0].tolist() for batch in batches] == [[0, 2], [1]]
    assert [batch["mask"][:, 0, 0].tolist() for batch in batches] == [[0, 2], [1]]
    ((batch,),) = data.labelled_dataloader("source", 2)
    assert batch["name"] == ["tiny_0_0", "tiny_0_2"]
    resized = tiny_data(eval_transform=EvalTransform(resize=(12, 16)))
    assert next(iter(resized.labelled_dataloader("val")))[0]["image"].shape == (1, 3, 12, 16)
    with pytest.raises(DatasetError, match=r"data\.val isn't set"):
        tiny_data(val=None).labelled_dataloader("val")


def test_the_limit_of_sizes_reaches_every_dataset():
    data = tiny_data(max_megapixels=3)
    assert {dataset.size_limit.megapixels for dataset in data.datasets.values()} == {3}
    assert tiny_data().source.size_limit.megapixels == 100
    assert data.source.fingerprint() == tiny_data().source.fingerprint(), "a limit changes no content"
    with pytest.raises(ValueError, match=r"max_megapixels: found 0, expected a number from"):
        tiny_data(max_megapixels=0)
