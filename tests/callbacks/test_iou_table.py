import csv
import io
import math

import lightning.pytorch as pl
import pytest
import rich
import torch
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_uda.callbacks.iou_table import Evaluation, IoUTable, append_row
from lightning_uda.label_spaces import LabelSpace

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
        self.confusions_at = torch.nn.ModuleDict({"1x2": MulticlassConfusionMatrix(3, ignore_index=255)})

    def validation_step(self, batch, batch_idx):
        self.confusions_at["1x2"].reset()
        self.confusions_at["1x2"].update(torch.tensor([0, 0]), torch.tensor([0, 1]))
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


def test_evaluation_in_percent():
    confusion = torch.tensor([[6, 0, 0], [2, 0, 0], [0, 0, 0]])
    evaluation = Evaluation.from_confusion(confusion, SPACE)
    assert evaluation.iou[:2] == [75.0, 0.0]
    assert math.isnan(evaluation.iou[2])
    assert evaluation.share == [75.0, 25.0, 0.0]
    assert evaluation.means == {"miou": 37.5, "miou_2": 37.5}
    assert evaluation.summary() == "mIoU 37.5  mIoU (2) 37.5"


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


def test_sanity_check_is_not_reported(tmp_path, console):
    trainer = trainer_of(tmp_path, IoUTable(), num_sanity_val_steps=1)
    trainer.limit_train_batches = 0
    trainer.fit(Module(), DataLoader(range(8), batch_size=1), masks())
    assert not (tmp_path / "run/version_0/iou.csv").exists()
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


def test_rows_with_new_columns_join_the_earlier_rows(tmp_path):
    path = tmp_path / "new" / "iou.csv"
    append_row(path, {"step": 1, "miou": 12.345678})
    append_row(path, {"step": 2, "miou": float("nan"), "iou_road": 3.0})
    assert path.read_text().splitlines() == ["step,miou,iou_road", "1,12.3457,", "2,,3.0"]
    assert [file.name for file in path.parent.iterdir()] == ["iou.csv"]
