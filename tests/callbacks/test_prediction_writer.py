import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lightning_uda.callbacks.prediction_writer import PredictionWriter
from lightning_uda.data.label_spaces import CITYSCAPES


class Module(pl.LightningModule):
    label_space = CITYSCAPES
    predicted = 0

    def predict_step(self, batch, batch_idx):
        self.predicted += 1
        return batch


def batches():
    first = torch.zeros(2, 4, 6, dtype=torch.uint8)
    first[0, 1, 2] = 18
    second = torch.full((1, 5, 3), 13, dtype=torch.uint8)
    return [{"pred": first, "name": ["aachen_0", "aachen_1"]}, {"pred": second, "name": ["bonn_0"]}]


def predict(folder, data=None):
    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[PredictionWriter(folder)], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.predict(module, DataLoader(data or batches(), batch_size=None), return_predictions=False)
    return module


def test_ids_and_colors_at_the_original_sizes(tmp_path):
    predict(tmp_path / "new" / "predictions")
    written = {path.relative_to(tmp_path / "new/predictions").as_posix() for path in tmp_path.rglob("*.png")}
    assert written == {f"{kind}/{name}.png" for kind in ("color", "id") for name in ("aachen_0", "aachen_1", "bonn_0")}
    ids = Image.open(tmp_path / "new/predictions/id/aachen_0.png")
    assert ids.mode == "L"
    np.testing.assert_array_equal(np.asarray(ids), batches()[0]["pred"][0].numpy())
    color = np.asarray(Image.open(tmp_path / "new/predictions/color/aachen_0.png"))
    assert color.shape == (4, 6, 3)
    assert tuple(color[1, 2]) == CITYSCAPES.palette[18]
    assert tuple(color[0, 0]) == CITYSCAPES.palette[0]
    assert np.asarray(Image.open(tmp_path / "new/predictions/id/bonn_0.png")).shape == (5, 3)


def test_earlier_predictions_are_not_overwritten(tmp_path):
    predict(tmp_path)
    before = (tmp_path / "id/aachen_0.png").read_bytes()
    other = [{"pred": torch.ones(1, 4, 6, dtype=torch.uint8), "name": ["aachen_0"]}]
    with pytest.raises(FileExistsError, match=r"color already holds 3 PNG files.*give another output_dir"):
        predict(tmp_path, other)
    assert (tmp_path / "id/aachen_0.png").read_bytes() == before


def test_refused_before_anything_is_predicted(tmp_path, monkeypatch):
    (tmp_path / "id").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "id" / "bonn_0.png")
    monkeypatch.setattr(Module, "predict_step", lambda *_: pytest.fail("predicted before the check"))
    with pytest.raises(FileExistsError, match="id already holds 1 PNG files"):
        predict(tmp_path)


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "id").mkdir()
    assert predict(tmp_path).predicted == 2


def test_two_images_of_one_name_are_refused(tmp_path):
    data = [{"pred": torch.zeros(2, 4, 6, dtype=torch.uint8), "name": ["same", "same"]}]
    with pytest.raises(ValueError, match="Two images are named 'same'"):
        predict(tmp_path, data)


def test_other_stages_need_no_folder(tmp_path):
    (tmp_path / "id").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "id" / "bonn_0.png")
    PredictionWriter(tmp_path).setup(None, None, "fit")
    assert not (tmp_path / "color").exists()
