import csv
import io

import lightning.pytorch as pl
import numpy as np
import pytest
import rich
import torch
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_uda.callbacks import IoUTable
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.metrics import evaluate, find_confusions, iou_per_class, mean_iou, read_confusion
from lightning_uda.report import load_runs
from lightning_uda.report.table import table_of

SPACE = LabelSpace(
    "toy", ("road", "sky", "tram"), ((128, 64, 128), (70, 130, 180), (0, 80, 100)), {"2": ("road", "sky")}
)


class Module(pl.LightningModule):
    """Predicts road everywhere; labels are 3/4 road and 1/4 sky, and one void pixel."""

    label_space = SPACE

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.confusion = MulticlassConfusionMatrix(3, ignore_index=255)

    def confusions(self):
        return {None: self.confusion}

    def training_step(self, batch, batch_idx):
        return self.weight.square().sum()

    def on_validation_epoch_start(self):
        self.confusion.reset()

    def validation_step(self, batch, batch_idx):
        pred = torch.zeros_like(batch["mask"], dtype=torch.long)
        self.confusion.update(pred, batch["mask"].long())
        return {"pred": pred}

    def on_validation_epoch_end(self):
        self.log("val/miou", 37.5)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ModuleWithSizes(Module):
    """Scored at 1 x 2 too, where one of two valid pixels is road."""

    def __init__(self):
        super().__init__()
        self.at_size = MulticlassConfusionMatrix(3, ignore_index=255)

    def confusions(self):
        return {None: self.confusion, "at_1x2": self.at_size}

    def validation_step(self, batch, batch_idx):
        self.at_size.reset()
        self.at_size.update(torch.tensor([0, 0]), torch.tensor([0, 1]))
        return super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val/miou_at_1x2", 25.0)


def masks():
    mask = torch.zeros(1, 2, 4, dtype=torch.uint8)
    mask[0, 0, :2] = 1
    mask = torch.cat([mask, torch.full((1, 2, 4), 255, dtype=torch.uint8)])
    return DataLoader([{"mask": mask}], batch_size=None)


def trainer_of(folder, callback, **kwargs):
    logger = CSVLogger(folder, "run", version=0) if folder else False
    return pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, max_epochs=-1, max_steps=4, val_check_interval=2, check_val_every_n_epoch=None,
        log_every_n_steps=1, **kwargs,
    )  # fmt: skip


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def console(monkeypatch):
    recorder = Console(record=True, width=100, file=io.StringIO())
    monkeypatch.setattr(rich, "_console", recorder)
    return recorder


def fit(folder, callback, module=None):
    trainer = trainer_of(folder, callback)
    trainer.fit(module or Module(), DataLoader(range(8), batch_size=1), masks())
    return trainer


def test_fit_writes_a_row_per_evaluation_and_logs_scalars(tmp_path, console):
    trainer = fit(tmp_path, IoUTable())
    rows = read(tmp_path / "run/version_0/iou.csv")
    assert [row["step"] for row in rows] == ["2", "4"]
    assert list(rows[0]) == ["step", "stage", "miou", "miou_2", "iou_road", "iou_sky", "iou_tram"]
    assert rows[1] == {
        "step": "4", "stage": "val", "miou": "37.5", "miou_2": "37.5", "iou_road": "75.0", "iou_sky": "0.0",
        "iou_tram": "",
    }  # fmt: skip
    assert trainer.callback_metrics["val/iou_road"] == 75.0
    assert trainer.callback_metrics["val/miou_2"] == 37.5
    assert "val/iou_tram" not in trainer.callback_metrics
    logged = [row for row in read(tmp_path / "run/version_0/metrics.csv") if row["val/iou_road"]]
    assert [row["val/miou"] for row in logged] == ["37.5", "37.5"]


def test_fit_prints_a_line_per_evaluation_and_one_table_at_the_end(tmp_path, console):
    fit(tmp_path, IoUTable())
    lines = console.export_text().splitlines()
    assert [line for line in lines if line.startswith("step")] == [
        "step 2  mIoU 37.5  mIoU (2) 37.5",
        "step 4  mIoU 37.5  mIoU (2) 37.5",
    ]
    assert sum("IoU per class, validation at step 4" in line for line in lines) == 1
    road, tram = (next(line for line in lines if name in line) for name in ("road", "tram"))
    assert road.split()[:3] == ["██", "road", "75.0"]
    assert road.split()[-1] == "75.0"
    assert tram.split()[:3] == ["██", "tram", "-"]


def test_without_tables_lines_remain(tmp_path, console):
    fit(tmp_path, IoUTable(print_table=False))
    assert "step 4  mIoU 37.5" in (text := console.export_text())
    assert "road" not in text


class Falls(Module):
    """Its predictions are right about road only until the third step, and about nothing from then on."""

    def validation_step(self, batch, batch_idx):
        guess = 0 if self.trainer.global_step < 3 else 2
        self.confusion.update(torch.full_like(batch["mask"], guess, dtype=torch.long), batch["mask"].long())
        return {"pred": torch.zeros_like(batch["mask"], dtype=torch.long)}


def test_the_best_evaluation_is_named_below_the_table_of_the_last(tmp_path, console):
    trainer = fit(tmp_path, IoUTable(), Falls())
    lines = [line.strip() for line in console.export_text().splitlines() if line.strip()]
    assert lines[-1] == "Best mIoU: 37.5 at step 2; that choice uses target labels"
    assert any("validation at step 4" in line for line in lines)

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer = trainer_of(tmp_path, IoUTable())
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Falls(), DataLoader(range(8), batch_size=1), masks(), ckpt_path=tmp_path / "last.ckpt")
    text = console.export_text()
    assert "validation at step 6" in text
    assert "Best mIoU: 37.5 at step 2; that choice uses target labels" in text


def test_one_evaluation_leaves_nothing_to_choose(tmp_path, console):
    trainer = trainer_of(tmp_path, IoUTable())
    trainer.fit_loop.epoch_loop.max_steps = 2
    trainer.fit(Module(), DataLoader(range(8), batch_size=1), masks())
    assert "Best" not in console.export_text()
    trainer.validate(Module(), masks(), verbose=False)
    assert "Best" not in console.export_text()


def test_sanity_check_is_not_reported(tmp_path, console):
    trainer = trainer_of(tmp_path, IoUTable(), num_sanity_val_steps=1)
    trainer.limit_train_batches = 0
    trainer.fit(Module(), DataLoader(range(8), batch_size=1), masks())
    assert not (tmp_path / "run/version_0/iou.csv").exists()
    assert not list(tmp_path.rglob("confusions"))
    assert "mIoU" not in console.export_text()


def test_without_a_logger_nothing_is_written(tmp_path, console, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(None, IoUTable())
    assert list(tmp_path.iterdir()) == []
    assert "IoU per class" in console.export_text()


def test_validate_and_test_print_the_table_and_keep_earlier_rows(tmp_path, console):
    trainer = trainer_of(tmp_path, IoUTable())
    trainer.validate(Module(), masks(), verbose=False)
    trainer.test(Module(), masks(), verbose=False)
    rows = read(tmp_path / "run/version_0/iou.csv")
    assert [(row["stage"], row["iou_road"]) for row in rows] == [("val", "75.0"), ("test", "75.0")]
    text = console.export_text()
    assert "IoU per class, validation at step 0" in text
    assert "IoU per class, test at step 0" in text
    assert trainer.callback_metrics["test/iou_sky"] == 0.0


def test_scores_at_further_sizes_stand_beside_the_others(tmp_path, console):
    trainer = fit(tmp_path, IoUTable(), ModuleWithSizes())
    rows = read(tmp_path / "run/version_0/iou.csv")
    assert list(rows[0]) == [
        "step", "stage", "miou", "miou_2", "iou_road", "iou_sky", "iou_tram",
        "miou_at_1x2", "miou_2_at_1x2", "iou_road_at_1x2", "iou_sky_at_1x2", "iou_tram_at_1x2",
    ]  # fmt: skip
    assert [rows[1][name] for name in ("miou", "iou_road", "miou_at_1x2", "iou_road_at_1x2", "iou_tram_at_1x2")] == [
        "37.5", "75.0", "25.0", "50.0", "",
    ]  # fmt: skip
    assert trainer.callback_metrics["val/miou_2_at_1x2"] == 25.0
    assert trainer.callback_metrics["val/iou_road_at_1x2"] == 50.0
    lines = console.export_text().splitlines()
    assert "step 4  mIoU 37.5  mIoU (2) 37.5  mIoU at 1x2 25.0  mIoU (2) at 1x2 25.0" in lines
    assert next(line for line in lines if "IoU %" in line).split() == ["class", "IoU", "%", "at", "1x2", "pixels", "%"]
    road = next(line for line in lines if "road" in line).split()
    assert (road[2], road[-2:]) == ("75.0", ["50.0", "75.0"])
    mean = next(line for line in lines if line.split()[:1] == ["mIoU"]).split()
    assert (mean[1], mean[-1]) == ("37.5", "25.0")


def test_every_evaluation_keeps_its_matrix(tmp_path, console):
    trainer = fit(tmp_path, IoUTable(), ModuleWithSizes())
    trainer.test(Module(), masks(), verbose=False)
    folder = tmp_path / "run/version_0/confusions"
    assert sorted(path.name for path in folder.iterdir()) == [
        "test_step_000004.csv", "val_step_000002.csv", "val_step_000002_at_1x2.csv", "val_step_000004.csv",
        "val_step_000004_at_1x2.csv",
    ]  # fmt: skip
    for name in ("test_step_000004.csv", "val_step_000002.csv", "val_step_000004.csv"):
        assert (folder / name).read_text().splitlines() == [
            "truth \\ prediction,road,sky,tram", "road,6,0,0", "sky,2,0,0", "tram,0,0,0",
        ]  # fmt: skip
    assert (folder / "val_step_000004_at_1x2.csv").read_text().splitlines()[1:] == [
        "road,1,0,0",
        "sky,1,0,0",
        "tram,0,0,0",
    ]


def test_a_step_evaluated_again_is_kept_beside(tmp_path, console):
    trainer = fit(tmp_path, IoUTable())
    folder = tmp_path / "run/version_0/confusions"
    before = (folder / "val_step_000004.csv").stat()
    trainer.validate(Module(), masks(), verbose=False)
    assert [path.name for path in sorted(folder.glob("val_step_000004*"))] == [
        "val_step_000004.2.csv", "val_step_000004.csv",
    ]  # fmt: skip
    assert (folder / "val_step_000004.csv").stat() == before
    assert [(file.step, file.number) for file in find_confusions(folder.parent)] == [(2, 1), (4, 1), (4, 2)]


def test_a_checkpoint_is_evaluated_under_its_step(tmp_path, console):
    trainer = fit(tmp_path, IoUTable())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = trainer_of(tmp_path / "again", IoUTable())
    again.validate(Module(), masks(), ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True)
    assert [path.name for path in (tmp_path / "again").rglob("confusions/*")] == ["val_step_000004.csv"]


class Guesses(Module):
    """Takes predictions of 5 classes from the batch, and logs its mean as `UDAModule` does."""

    label_space = LabelSpace(
        "five", tuple("abcde"), tuple((i, i, i) for i in range(5)), {"ad": ("a", "d"), "d": ("d",), "bc": ("b", "c")}
    )

    def __init__(self):
        super().__init__()
        self.confusion = MulticlassConfusionMatrix(5, ignore_index=255)

    def validation_step(self, batch, batch_idx):
        self.confusion.update(batch["pred"], batch["mask"])

    def on_validation_epoch_end(self):
        self.log("val/miou", 100 * mean_iou(iou_per_class(self.confusion.compute())).float())


def test_a_matrix_on_disk_gives_all_that_is_reported(tmp_path, console):
    """Metrics, `iou.csv`, console and report, against intersections and unions counted pixel by pixel."""
    names, shape = np.array([0, 1, 2, 4, 255]), (7, 9, 11)  # the fourth class is in neither
    truth = names[np.random.default_rng(3).integers(0, 5, shape)]
    pred = names[np.random.default_rng(4).integers(0, 4, shape)]
    batches = [{"mask": torch.tensor(t)[None], "pred": torch.tensor(p)[None]} for t, p in zip(truth, pred, strict=True)]
    trainer = trainer_of(tmp_path, IoUTable())
    trainer.fit(Guesses(), DataLoader(range(8), batch_size=1), DataLoader(batches, batch_size=None))

    valid = truth != 255
    union = {name: ((truth == c) | (pred == c))[valid].sum() for c, name in enumerate("abcde")}
    both = {name: ((truth == c) & (pred == c))[valid].sum() for c, name in enumerate("abcde")}
    iou = {name: 100 * both[name] / union[name] for name in "abce"}
    expected = {f"iou_{name}": value for name, value in iou.items()}
    expected |= {"miou": sum(iou.values()) / 4, "miou_ad": iou["a"], "miou_bc": (iou["b"] + iou["c"]) / 2}
    assert union["d"] == 0

    folder = tmp_path / "run/version_0"
    matrix, classes = read_confusion(folder / "confusions/val_step_000004.csv")
    assert matrix.tolist() == [[int(((truth == t) & (pred == p)).sum()) for p in range(5)] for t in range(5)]
    assert classes == list("abcde")
    columns = evaluate(matrix, Guesses.label_space).columns()
    assert {name: value for name, value in columns.items() if value == value} == pytest.approx(expected, rel=1e-12)
    last = [row for row in read(folder / "metrics.csv") if row["val/miou"]][-1]
    logged = {name: float(value) for name, value in last.items() if name.startswith("val/") and value}
    assert logged == pytest.approx({f"val/{name}": value for name, value in expected.items()}, rel=1e-6)
    row = read(folder / "iou.csv")[-1]
    assert (row.pop("step"), row.pop("stage"), row["iou_d"], row["miou_d"]) == ("4", "val", "", "")
    assert {name: float(cell) for name, cell in row.items() if cell} == pytest.approx(expected, abs=5.1e-5)
    (run,) = load_runs([folder])
    run.label_space = Guesses.label_space
    assert {name: run.value(name) for name in expected if not name.startswith("miou_")} == pytest.approx(
        {name: value for name, value in expected.items() if not name.startswith("miou_")}, rel=1e-12
    )
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["██", "b", f"{iou['b']:.1f}"] in [line[:3] for line in lines]
    assert ["██", "d", "-"] in [line[:3] for line in lines]
    assert ["mIoU", f"{expected['miou']:.1f}"] in [line[:2] for line in lines]
    assert ["mIoU", "(d)", "-"] in [line[:3] for line in lines]
    console.print(table_of(load_runs([folder])))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["██", "b", f"{iou['b']:.1f}"] in lines
    assert ["██", "d", "-"] in lines
    assert ["mIoU", f"{expected['miou']:.1f}"] in lines
