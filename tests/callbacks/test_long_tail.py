import csv
import io
import zlib

import lightning.pytorch as pl
import numpy as np
import pytest
import rich
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from rich.console import Console

from lightning_uda.callbacks import LongTailStatistics
from lightning_uda.callbacks.long_tail import draw_chart
from lightning_uda.data import counts, statistics
from lightning_uda.data.statistics import ClassStatistics
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.datasets.folder import FolderDataset
from lightning_uda.methods import SourceOnly
from tests.fixtures.tiny import TinyDataset, tiny_data, tiny_network


class Rare(TinyDataset):
    """Class 1 in the images 2 and 5 only, class 2 in the images 4 to 9, class 0 in all; the rest is void."""

    def load_label(self, index):
        label = super().load_label(index)
        held = [0, *([1] if index in (2, 5) else []), *([2] if index >= 4 else [])]
        return np.where(np.isin(label, held), label, 255).astype(np.uint8)


class Pasting(SourceOnly):
    """Wants two tail classes per step, and keeps what it gets."""

    streams = ("source", "tail")
    long_tail_k = 2

    def __init__(self):
        super().__init__(tiny_network(), "camvid")
        self.tails = []

    def training_step(self, batch, batch_idx):
        self.tails.append(batch["tail"])
        return super().training_step(batch, batch_idx)


class OnePasted(Pasting):
    long_tail_k = 1


class NotPasting(SourceOnly):
    long_tail_k = 0


@pytest.fixture
def console(monkeypatch):
    recorder = Console(record=True, width=80, file=io.StringIO())
    monkeypatch.setattr(rich, "_console", recorder)
    return recorder


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    folder = tmp_path / "user_cache"
    monkeypatch.setenv(counts.CACHE_VARIABLE, str(folder))
    return folder


def fit(callback, folder=None, module=None, data=None, logger=None, max_steps=3):
    module, data = module or Pasting(), data or tiny_data(source=Rare(seed=1), val=None)
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger or (CSVLogger(folder, "run", version=0) if folder else False),
        callbacks=[callback], max_steps=max_steps, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_gets_the_rarest_classes(console):
    module = fit(LongTailStatistics(num_classes=2), max_steps=6)
    assert len(module.tails) == 6
    orders = set()
    for batch in module.tails:
        assert batch["image"].shape == (2, 2, 3, 16, 16)
        found = [[sorted(set(mask.flatten().tolist()) - {255}) for mask in sample] for sample in batch["mask"]]
        assert found[0] == found[1]  # one draw for the whole step
        assert sorted(found[0]) == [[1], [2]]
        orders.add(str(found[0]))
    assert len(orders) == 2


def test_table_csv_and_chart(tmp_path, console):
    fit(LongTailStatistics(num_classes=2), tmp_path)
    run = tmp_path / "run/version_0"
    rows = read(run / "class_statistics.csv")
    assert [row["class"] for row in rows[:3]] == ["Sky", "Building", "Pole"]
    assert len(rows) == 11
    assert [row["images"] for row in rows[:4]] == ["10", "2", "6", "0"]
    assert [row["images_percent"] for row in rows[:4]] == ["100.0000", "20.0000", "60.0000", "0.0000"]
    assert [row["tail"] for row in rows[:4]] == ["no", "yes", "yes", "no"]
    labels = np.stack([Rare(seed=1).load_label(i) for i in range(10)])
    assert float(rows[1]["pixels_percent"]) == pytest.approx(
        100 * (labels == 1).sum() / (labels != 255).sum(), abs=1e-3
    )
    chart = np.asarray(Image.open(run / "class_statistics.png"))
    assert chart.ndim == 3
    assert min(chart.shape[:2]) > 400
    text = console.export_text()
    assert text.count("Classes in the 10 source label maps") == 1
    (line,) = [line for line in text.splitlines() if "Building" in line]
    assert line.split()[1:4] == ["Building", "2", "20.0"]
    assert line.split()[-1] == "yes"
    (line,) = [line for line in text.splitlines() if "Sky" in line]
    assert "yes" not in line
    assert not [p for p in run.iterdir() if p.name.endswith(".part")]


def test_without_a_logger_nothing_is_written(tmp_path, console, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(LongTailStatistics(num_classes=2))
    assert [path.name for path in tmp_path.iterdir()] == ["user_cache"]
    assert "Classes in the 10 source" in console.export_text()


def test_loggers_that_take_images_get_the_chart(tmp_path, console, monkeypatch):
    sent = []
    logger = TensorBoardLogger(tmp_path)
    monkeypatch.setattr(logger.experiment, "add_image", lambda key, image, step, **_: sent.append((key, image.ndim)))
    fit(LongTailStatistics(num_classes=2), logger=logger)
    assert sent == [("class_statistics", 3)]


def test_named_classes_replace_the_count(console):
    module = fit(LongTailStatistics(classes=["Sky", "Building"]))
    assert set().union(*(set(batch["mask"].flatten().tolist()) for batch in module.tails)) == {0, 1, 255}


def test_labels_are_counted_at_full_size_and_once(tmp_path, user_cache, console, monkeypatch):
    counted = []
    count = statistics._count
    monkeypatch.setattr(statistics, "_count", lambda dataset, *a: counted.append(dataset) or count(dataset, *a))
    transform = TrainTransform(resize=(12, 16), crop=(8, 8))

    def data(cache_dir=None):
        return tiny_data(source=Rare(seed=1), val=None, source_transform=transform, cache_dir=cache_dir)

    fit(LongTailStatistics(2), data=data())
    fit(LongTailStatistics(2), data=data())
    assert [type(dataset) for dataset in counted] == [Rare]
    assert list(user_cache.glob("Rare-classes-*.npz"))
    fit(LongTailStatistics(2), data=data(str(tmp_path / "data_cache")))
    assert [type(dataset) for dataset in counted] == [Rare, Rare]  # not the resized labels
    assert list((tmp_path / "data_cache").glob("Rare-classes-*.npz"))
    fit(LongTailStatistics(2, cache_dir=str(tmp_path / "own")), data=data(str(tmp_path / "data_cache")))
    assert list((tmp_path / "own").glob("Rare-classes-*.npz"))


def test_a_tail_class_in_nearly_every_image_is_warned_of(console, caplog):
    fit(LongTailStatistics(classes=["Sky", "Building", "Pole"]))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "classes that are in more than 90 % of the 10 source images: Sky (100 %); expected rare ones" in warning
    assert "Choose fewer classes, or name the rare ones" in warning
    caplog.clear()
    fit(LongTailStatistics(num_classes=2))
    assert "long-tail classes that are in more" not in caplog.text


def test_any_labelled_folder_will_do(tmp_path, console):
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for i in range(4):
        dataset = Rare(seed=1)
        Image.fromarray(dataset.load_image(i + 2)).save(tmp_path / f"set/images/{i}.png")
        Image.fromarray(dataset.load_label(i + 2)).save(tmp_path / f"set/labels/{i}.png")
    source = FolderDataset(str(tmp_path / "set"), class_map={0: "Sky", 1: "Building", 2: "Pole"})
    module = fit(LongTailStatistics(2), data=tiny_data(source=source, val=None))
    assert set().union(*(set(batch["mask"].flatten().tolist()) for batch in module.tails)) == {1, 2, 255}


def test_the_arguments_reach_the_stream(console):
    data = tiny_data(source=Rare(seed=1), val=None, batch_size=3, seed=5)
    fit(LongTailStatistics(2, max_tries=7, all_chosen_classes=True), data=data)
    stream = data._fed["tail"]()
    assert (stream.max_tries, stream.all_chosen_classes) == (7, True)
    assert (stream.origin.samples_per_step, stream.origin.key) == (3, (5, zlib.crc32(b"tail")))
    assert {c: images.tolist() for c, images in stream.images.items()} == {1: [2, 5], 2: [4, 5, 6, 7, 8, 9]}


def test_a_method_that_pastes_nothing_is_fed_nothing(console):
    data = tiny_data(source=Rare(seed=1), val=None)
    fit(LongTailStatistics(2), module=NotPasting(tiny_network(), "camvid"), data=data)
    assert data._fed == {}
    assert console.export_text() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, r"Found 1 long-tail classes \['Building'\], but 2 different ones are pasted per step"),
        ({"num_classes": 4}, r"num_classes: found 4, but the source labels hold 3 of the 11 classes"),
        ({"classes": ["Sky", "tram"]}, r"classes: found \['tram'\], expected names of the label space"),
        ({"classes": ["Sky", "Car"]}, r"classes: none of the 10 source label maps holds \['Car'\]"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_before_training(arguments, message, console):
    module = Pasting()
    with pytest.raises(ValueError, match=message):
        fit(LongTailStatistics(**arguments), module=module)
    assert module.tails == []


class NearlyAsRare(TinyDataset):
    """Class 1 in two images, class 2 in three, class 0 in all ten."""

    def load_label(self, index):
        label = super().load_label(index)
        held = [0, *([1] if index in (2, 5) else []), *([2] if index in (4, 7, 9) else [])]
        return np.where(np.isin(label, held), label, 255).astype(np.uint8)


def test_a_class_left_out_that_is_nearly_as_rare_is_warned_of(console, caplog):
    module, data = OnePasted(), tiny_data(source=NearlyAsRare(seed=1), val=None)
    fit(LongTailStatistics(num_classes=1), module=module, data=data)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "most frequent class (2 images): Pole (3 images); expected a gap between both" in warning
    assert "--model.long_tail_classes gap" in warning


def test_a_tail_behind_a_gap_is_not_warned_of(console, caplog):
    fit(LongTailStatistics(num_classes="gap"), module=OnePasted())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_share_of_each_class_is_logged(tmp_path, console):
    module = fit(LongTailStatistics(num_classes=2), tmp_path, max_steps=4)
    rows = [row for row in read(tmp_path / "run/version_0/metrics.csv") if row["train/tail_pixels_Building"]]
    assert len(rows) == len(module.tails) == 4
    for row, tail in zip(rows, module.tails, strict=True):
        masks = tail["mask"].numpy()
        for name, c in (("Building", 1), ("Pole", 2)):
            shares = [np.mean([(sample == c).any(0).mean()]) for sample in masks]
            assert float(row[f"train/tail_pixels_{name}"]) == pytest.approx(np.mean(shares), abs=1e-6)


def test_a_method_without_tail_classes_is_refused():
    with pytest.raises(ValueError, match=r"needs a method with long_tail_k, such as DSP; found SourceOnly\. Take"):
        fit(LongTailStatistics(), module=SourceOnly(tiny_network(), "camvid"))


def test_a_run_without_the_data_module_is_refused():
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[LongTailStatistics()], enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"found no UDADataModule with a source set"):
        trainer.fit(Pasting(), [0])


@pytest.mark.parametrize("name", ["num_classes", "max_tries"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=rf"LongTailStatistics\.{name}: found 0, expected a number from 1"):
        LongTailStatistics(**{name: 0})


def test_evaluation_needs_no_tail(console):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[LongTailStatistics()], enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.validate(SourceOnly(tiny_network(), "camvid"), datamodule=tiny_data(), verbose=False)


def test_the_chart_has_one_coloured_bar_for_each_chosen_class():
    counts = np.arange(10)[:, None] < np.array([10, 3, 5, 1])
    chart = draw_chart(ClassStatistics(("a", "b", "c", "d"), counts), [3, 1])
    orange = (chart == (232, 116, 59)).all(axis=2)
    widths = [int(row.sum()) for row in orange if row.sum() > 40]
    ratio = max(widths) / min(widths)
    assert ratio == pytest.approx(3, abs=0.1)  # the title's text is narrower
