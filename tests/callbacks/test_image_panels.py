from unittest.mock import MagicMock

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch.utils.data import DataLoader

from lightning_uda.callbacks import IoUTable
from lightning_uda.callbacks.image_panels import ImagePanels, compose_strip
from lightning_uda.callbacks.logger_media import log_image
from lightning_uda.label_spaces import CITYSCAPES
from lightning_uda.methods import SourceOnly
from lightning_uda.metrics import latest_image_scores
from lightning_uda.step import Labels, View
from lightning_uda.tables import read_rows
from tests.fixtures.tiny import tiny_data, tiny_network

HEIGHT, WIDTH = 8, 16


class Module(pl.LightningModule):
    label_space = CITYSCAPES

    def __init__(self, mixes=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.mixes = mixes

    def training_step(self, batch, batch_idx):
        self.last_views = {
            name: View(part["image"], [Labels(part["mask"])]) for name, part in batch.items() if "mask" in part
        }
        if self.mixes:
            weights = torch.linspace(0, 0.5, WIDTH).expand(2, HEIGHT, WIDTH)
            labels = [Labels(torch.full((2, HEIGHT, WIDTH), 13), weights), Labels(batch["source"]["mask"], weights)]
            self.last_views["mixed"] = View(batch["target"]["image"] / 255, labels)
        return self.weight.square().sum()

    def validation_step(self, batch, batch_idx):
        return {"pred": torch.full(batch["mask"].shape, 10)}

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_batch(step, with_target=True):
    batch = {
        "source": {
            "image": torch.full((2, 3, HEIGHT, WIDTH), step, dtype=torch.uint8),
            "mask": torch.full((2, HEIGHT, WIDTH), 255, dtype=torch.uint8),
        }
    }
    if with_target:
        batch["target"] = {"image": torch.full((2, 3, HEIGHT, WIDTH), 100 + step, dtype=torch.uint8)}
    return batch


def train_loader(with_target=True):
    return DataLoader([train_batch(step, with_target) for step in range(8)], batch_size=None)


def val_loader():
    image = torch.arange(HEIGHT * WIDTH, dtype=torch.uint8).view(1, HEIGHT, WIDTH).expand(2, 3, -1, -1).clone()
    image[1] = 7
    mask = torch.zeros(2, 2 * HEIGHT, 2 * WIDTH, dtype=torch.uint8)
    return DataLoader([{"image": image, "mask": mask, "name": ["a", "b"]}] * 2, batch_size=None)


def trainer_of(folder, callback, **kwargs):
    return pl.Trainer(**{
        "accelerator": "cpu", "logger": CSVLogger(folder, "run", version=0) if folder else False,
        "callbacks": [callback], "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_epochs": -1, "max_steps": 4, "val_check_interval": 2,
        "check_val_every_n_epoch": None, "log_every_n_steps": 1, **kwargs,
    })  # fmt: skip


def panels_of(folder):
    return folder / "run/version_0/panels"


def load(path):
    return np.asarray(Image.open(path))


def test_tiles_of_a_mixing_method(tmp_path):
    trainer_of(tmp_path, ImagePanels(num_images=3)).fit(Module(), train_loader(), val_loader())
    folders = sorted(path.name for path in panels_of(tmp_path).iterdir())
    assert folders == ["step_000002", "step_000004"]
    folder = panels_of(tmp_path) / "step_000004"
    names = {f"val_{i}_{kind}.png" for i in range(3) for kind in ("image", "mask", "prediction")}
    kinds = ("source", "source_mask", "target", "mixed_image", "mixed_mask", "mixed_weights")
    names |= {f"train_{i}_{kind}.png" for i in range(2) for kind in kinds}
    assert {path.name for path in folder.iterdir()} == names

    np.testing.assert_array_equal(load(folder / "val_0_image.png")[..., 1].ravel(), np.arange(HEIGHT * WIDTH))
    assert (load(folder / "val_1_image.png") == 7).all()
    assert load(folder / "val_0_mask.png").shape == (2 * HEIGHT, 2 * WIDTH, 3)
    assert (load(folder / "val_0_mask.png") == CITYSCAPES.palette[0]).all()
    assert (load(folder / "val_0_prediction.png") == CITYSCAPES.palette[10]).all()
    # the most recent batch, the fourth, is drawn; void is black
    assert (load(folder / "train_0_source.png") == 3).all()
    assert (load(folder / "train_0_source_mask.png") == 0).all()
    assert (load(folder / "train_0_target.png") == 103).all()
    assert (load(folder / "train_0_mixed_image.png") == 103).all()
    assert (load(folder / "train_0_mixed_mask.png") == CITYSCAPES.palette[13]).all()
    weights = load(folder / "train_0_mixed_weights.png").astype(int)
    np.testing.assert_allclose(weights[0, 0], (68, 1, 84), atol=2)  # ends of viridis
    np.testing.assert_allclose(weights[0, -1], (253, 231, 37), atol=2)
    assert (np.diff(weights.sum(axis=2)[0]) > 0).all()


@pytest.mark.parametrize("with_target", [True, False])
def test_a_method_that_mixes_nothing(tmp_path, with_target):
    trainer_of(tmp_path, ImagePanels(num_images=1)).fit(Module(mixes=False), train_loader(with_target), val_loader())
    names = {path.name for path in (panels_of(tmp_path) / "step_000004").glob("train_*")}
    assert names == {"train_0_source.png", "train_0_source_mask.png"} | (
        {"train_0_target.png"} if with_target else set()
    )


def test_own_interval_of_training_pictures(tmp_path):
    callback = ImagePanels(num_images=1, every_n_steps=3)
    trainer_of(tmp_path, callback, accumulate_grad_batches=2).fit(Module(), train_loader(), val_loader())
    drawn = {path.parent.name for path in panels_of(tmp_path).glob("*/train_0_source.png")}
    assert drawn == {"step_000003"}


def test_first_steps_are_drawn_beside_the_interval(tmp_path):
    callback = ImagePanels(num_images=1, every_n_steps=3, at_steps=[1, 3])
    trainer_of(tmp_path, callback).fit(Module(), train_loader(), val_loader())
    drawn = {path.parent.name for path in panels_of(tmp_path).glob("*/train_0_source.png")}
    assert drawn == {"step_000001", "step_000003"}
    with pytest.raises(ValueError, match=r"at_steps: found \[0\]"):
        ImagePanels(at_steps=[0])


def test_only_the_first_images_of_the_evaluation_and_no_sanity_check(tmp_path):
    trainer = trainer_of(tmp_path, ImagePanels(num_images=1), num_sanity_val_steps=1)
    trainer.fit(Module(), train_loader(), val_loader())
    assert len(list(panels_of(tmp_path).glob("step_000002/val_*_image.png"))) == 1
    assert not (panels_of(tmp_path) / "step_000000").exists()


def test_test_stage(tmp_path):
    trainer_of(tmp_path, ImagePanels(num_images=2)).test(Module(), val_loader(), verbose=False)
    names = {path.name for path in (panels_of(tmp_path) / "step_000000").iterdir()}
    assert names == {f"test_{i}_{kind}.png" for i in range(2) for kind in ("image", "mask", "prediction")}


def test_wide_pictures_are_reduced_and_labels_keep_their_colors(tmp_path):
    trainer_of(tmp_path, ImagePanels(num_images=1, max_width=10)).validate(Module(), val_loader(), verbose=False)
    folder = panels_of(tmp_path) / "step_000000"
    assert load(folder / "val_0_image.png").shape == (5, 10, 3)
    assert load(folder / "val_0_mask.png").shape == (5, 10, 3)
    assert (load(folder / "val_0_prediction.png") == CITYSCAPES.palette[10]).all()


def test_without_a_logger_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer_of(None, ImagePanels()).fit(Module(), train_loader(), val_loader())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_copied_from_the_device_between_drawings(monkeypatch):
    callback = ImagePanels()
    trainer, outputs = MagicMock(global_step=3), {"mixed": {"image": MagicMock(spec=torch.Tensor)}}
    image = MagicMock(spec=torch.Tensor)
    callback.on_train_batch_end(trainer, MagicMock(), outputs, {"source": {"image": image}}, 0)
    assert image.mock_calls == []
    assert outputs["mixed"]["image"].mock_calls == []


def test_the_worst_and_the_best_images_are_drawn_by_what_the_network_makes_of_them(tmp_path):
    data = tiny_data(num_workers=0)
    data.val.length = 5
    module = SourceOnly(network=tiny_network(), label_space="camvid")
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[ImagePanels(num_extremes=2), IoUTable(False)], enable_progress_bar=False,
        logger=CSVLogger(tmp_path, "run", version=0), enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.validate(module, data, verbose=False)
    expected, errors = {}, {}
    module.eval()
    for i in range(5):
        truth = torch.from_numpy(data.val.load_label(i).astype(int))
        image = torch.from_numpy(data.val.load_image(i)).permute(2, 0, 1)[None]
        with torch.no_grad():
            pred = module.predict_labels(image, truth.shape)[0]
        valid = truth != 255
        ious = [
            float(((truth == c) & (pred == c)).sum() / (((truth == c) | (pred == c)) & valid).sum())
            for c in truth[valid].unique()
        ]
        expected[data.val.name(i)] = 100 * sum(ious) / len(ious)
        errors[data.val.name(i)] = (int((pred != truth)[valid].sum()), int((~valid).sum()))
    ranked = sorted(expected, key=expected.get)
    scores = latest_image_scores(tmp_path / "run/version_0", "val")
    assert [name for name, _ in scores] == ranked
    assert [score for _, score in scores] == pytest.approx([expected[name] for name in ranked], abs=1e-3)
    folder = tmp_path / "run/version_0/panels/step_000000"
    chosen = {row["picture"]: row["image"] for row in read_rows(folder / "val_extremes.csv")}
    names = {"worst_0": ranked[0], "worst_1": ranked[1], "best_0": ranked[-1], "best_1": ranked[-2]}
    assert chosen == names
    for picture, name in names.items():
        wrong = np.asarray(Image.open(folder / f"val_{picture}_errors.png")).reshape(-1, 3)
        assert ((wrong == (213, 94, 0)).all(1).sum(), (wrong == 0).all(1).sum()) == errors[name]
        assert (folder / f"val_{picture}_prediction.png").is_file()


def test_strip_sets_tiles_side_by_side():
    red = np.zeros((10, 20, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    blue = np.zeros((20, 40, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
    strip = compose_strip({"image": red, "mask": blue})
    assert strip.shape == (36, 46, 3)
    assert (strip[26:, :20] == (255, 0, 0)).all()
    assert (strip[26:, 20:26] == 255).all()
    assert (strip[26:, 26:] == (0, 0, 255)).all()
    assert (strip[:26] < 128).any(), "captions are drawn"


def test_wandb_gets_the_image():
    logger, image = MagicMock(spec=WandbLogger), np.zeros((4, 6, 3), np.uint8)
    log_image(logger, "val/panel_0", image, 8)
    logger.log_image.assert_called_once_with("val/panel_0", [image], 8)


def test_tensorboard_gets_the_image(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, "run", version=0)
    trainer = trainer_of(None, ImagePanels(num_images=1), logger=logger)
    trainer.fit(Module(), train_loader(), val_loader())
    events = event_accumulator.EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["train/panel_0", "val/panel_0"]
    shown = events.Images("val/panel_0")
    assert [(item.step, item.height) for item in shown] == [(2, HEIGHT + 26), (4, HEIGHT + 26)]


@pytest.mark.parametrize("arguments", [{"num_images": 0}, {"every_n_steps": 0}, {"max_width": 0}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="expected a number from 1"):
        ImagePanels(**arguments)
    with pytest.raises(ValueError, match="num_extremes: found -1, expected a number from 0"):
        ImagePanels(num_extremes=-1)


def test_tiles_of_self_training(tmp_path):
    batches = [{"union": train_batch(step)["source"]} for step in range(8)]
    loader = DataLoader(batches, batch_size=None)
    trainer_of(tmp_path, ImagePanels(num_images=1)).fit(Module(mixes=False), loader, val_loader())
    names = {path.name for path in (panels_of(tmp_path) / "step_000004").glob("train_*")}
    assert names == {"train_0_union.png", "train_0_union_mask.png"}
