import torch

from lightning_uda.callbacks import ConfusionWriter
from lightning_uda.metrics import read_confusion
from tests.callbacks.test_iou_table import Module, ModuleWithSizes, fit, masks, trainer_of


def test_the_matrix_of_the_latest_evaluation_is_kept(tmp_path):
    fit(tmp_path, ConfusionWriter(), ModuleWithSizes())
    folder = tmp_path / "run/version_0"
    assert sorted(path.name for path in folder.glob("confusion*")) == ["confusion_val.csv", "confusion_val_at_1x2.csv"]
    confusion, classes = read_confusion(folder / "confusion_val.csv")
    assert torch.equal(confusion, torch.tensor([[6, 0, 0], [2, 0, 0], [0, 0, 0]]))
    assert classes == ["road", "sky", "tram"]
    at_size, _ = read_confusion(folder / "confusion_val_at_1x2.csv")
    assert torch.equal(at_size, torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0, 0]]))


def test_of_a_test_but_not_of_the_sanity_check(tmp_path):
    trainer = trainer_of(tmp_path, ConfusionWriter(), num_sanity_val_steps=1)
    trainer.limit_train_batches = 0
    trainer.fit(Module(), [0], masks())
    assert not list(tmp_path.rglob("confusion*"))
    trainer.test(Module(), masks(), verbose=False)
    assert [path.name for path in tmp_path.rglob("confusion*")] == ["confusion_test.csv"]


def test_without_a_logger_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(None, ConfusionWriter())
    assert list(tmp_path.iterdir()) == []
