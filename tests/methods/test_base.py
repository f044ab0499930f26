import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from PIL import Image
from scipy.ndimage import binary_dilation
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from lightning_uda.callbacks import IoUTable
from lightning_uda.inference import MultiScale, SlidingWindow
from lightning_uda.methods import DACS, DSP, SourceOnly
from lightning_uda.metrics import Scoring, iou_per_class, mean_iou
from lightning_uda.optim import Constant, Poly
from lightning_uda.step import Term
from tests.fixtures.tiny import TinyDataset, TinyNetwork, tiny_data, tiny_network

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


def train(folder, ckpt_path=None, workers=0, accumulate=1):
    """A run of 6 steps with a checkpoint and a row of metrics after each."""
    module = DACS(network=tiny_network(), label_space="camvid", schedule=Poly(0.9), seed=3)
    checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        max_steps=6,
        val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(folder, name="", version="log"),
        callbacks=[checkpoint],
        **QUIET,
    )
    trainer.fit(module, datamodule=tiny_data(workers, seed=3), ckpt_path=ckpt_path)
    return module, trainer


def rows_from(folder, step):
    """Lines of metrics.csv from a step on, as sorted column-value pairs."""
    header, *lines = (folder / "log" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    return [sorted((k, v) for k, v in row.items() if v and k != "epoch") for row in rows if int(row["step"]) >= step]


def flat(state):
    if isinstance(state, dict):
        return [item for key in sorted(state, key=str) for item in flat(state[key])]
    if isinstance(state, list | tuple):
        return [item for value in state for item in flat(value)]
    return [state]


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 1), (0, 2)])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, workers, accumulate):
    whole, whole_trainer = train(tmp_path / "whole", accumulate=accumulate)
    middle = str(tmp_path / "whole" / "step=3.ckpt")
    resumed, resumed_trainer = train(tmp_path / "resumed", middle, workers, accumulate)

    assert resumed_trainer.global_step == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    optimizers = [flat(trainer.optimizers[0].state_dict()) for trainer in (whole_trainer, resumed_trainer)]
    for a, b in zip(*optimizers, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert rows_from(tmp_path / "whole", 3) == rows_from(tmp_path / "resumed", 3)
    assert len(rows_from(tmp_path / "whole", 3)) >= 4


def test_groups_have_rates_of_their_own_and_follow_the_schedule():
    rates = []

    class Recorded(SourceOnly):
        def training_step(self, batch, batch_idx):
            rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
            return super().training_step(batch, batch_idx)

    module = Recorded(tiny_network(), "camvid", optimizer=lambda p: torch.optim.SGD(p, lr=0.01), schedule=Poly(1.0))
    Trainer(max_steps=4, logger=False, enable_checkpointing=False, **QUIET).fit(module, datamodule=tiny_data(val=None))
    expected = [0.01, 0.0075, 0.005, 0.0025]
    assert [r[0] for r in rates] == pytest.approx(expected)
    assert [r[1] for r in rates] == pytest.approx([10 * r for r in expected])


def test_validation_gives_the_mean_iou_of_all_images(tmp_path):
    module, data = SourceOnly(tiny_network(), "camvid"), tiny_data()
    (metrics,) = Trainer(logger=False, **QUIET).validate(module, datamodule=data, verbose=False)
    confusion = torch.zeros(11, 11, dtype=torch.long)
    module.eval()
    for batch in data.val_dataloader():
        predicted, mask = module.predict_labels(batch["image"], (24, 32)), batch["mask"].long()
        valid = mask != 255
        confusion += torch.bincount(11 * mask[valid] + predicted[valid], minlength=121).view(11, 11)
    assert metrics["val/miou"] == pytest.approx(100 * mean_iou(iou_per_class(confusion)).item())
    (tested,) = Trainer(logger=False, **QUIET).test(module, datamodule=data, verbose=False)
    assert tested["test/miou"] == pytest.approx(metrics["val/miou"])


class CountedNetwork(TinyNetwork):
    """Counts its passes."""

    passes = 0

    def outputs(self, image):
        self.passes += 1
        return super().outputs(image)


def expected_confusion(module, data, size, merged=None, counts=np.ones_like):
    """Counts arg-max labels, one image after the other; labels resized by Pillow, void where `counts` says no."""
    confusion = torch.zeros(11, 11, dtype=torch.long)
    module.eval()
    for batch in data.val_dataloader():
        logits = F.interpolate(module.student(batch["image"] / 255), size, mode="bilinear", align_corners=True)
        predicted = logits.argmax(dim=1)[0]
        predicted = predicted if merged is None else merged[predicted]
        image = Image.fromarray(batch["mask"][0].numpy()).resize(size[::-1], Image.Resampling.NEAREST)
        mask = np.asarray(image).astype(np.int64)
        mask = torch.from_numpy(np.where(counts(mask), mask, 255))
        valid = mask != 255
        confusion += torch.bincount(11 * mask[valid] + predicted[valid], minlength=121).view(11, 11)
    return confusion


def expected_miou(*args, **kwargs):
    """Mean IoU in percent of what `expected_confusion` counts."""
    return 100 * mean_iou(iou_per_class(expected_confusion(*args, **kwargs))).item()


@pytest.mark.parametrize("kind", [SourceOnly, DACS])
def test_predictions_are_scored_at_further_sizes_too_in_one_pass(kind):
    torch.manual_seed(0)
    module = kind(network=CountedNetwork(), label_space="camvid", scoring=Scoring(sizes=[(12, 16), (30, 41)]))
    data = tiny_data()
    (metrics,) = Trainer(logger=False, **QUIET).validate(module, datamodule=data, verbose=False)
    assert module.student.passes == 3
    assert set(metrics) == {"val/miou", "val/miou_at_12x16", "val/miou_at_30x41"}
    for name, size in (("", (24, 32)), ("_at_12x16", (12, 16)), ("_at_30x41", (30, 41))):
        assert metrics[f"val/miou{name}"] == pytest.approx(expected_miou(module, data, size)), name
    assert len(set(metrics.values())) == 3
    (again,) = Trainer(logger=False, **QUIET).validate(module, datamodule=data, verbose=False)
    assert again == metrics
    (tested,) = Trainer(logger=False, **QUIET).test(module, datamodule=data, verbose=False)
    assert tested == {name.replace("val/", "test/"): value for name, value in metrics.items()}


def test_the_table_of_a_run_holds_scores_at_further_sizes(tmp_path):
    module = SourceOnly(tiny_network(), "camvid", scoring=Scoring(sizes=[(12, 16)]))
    trainer = Trainer(logger=CSVLogger(tmp_path, name="", version="log"), callbacks=[IoUTable(False)], **QUIET)
    (metrics,) = trainer.validate(module, datamodule=tiny_data(), verbose=False)
    with (tmp_path / "log" / "iou.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["miou_at_12x16"]) == pytest.approx(metrics["val/miou_at_12x16"], abs=1e-4)
    assert float(row["iou_Sky_at_12x16"]) == pytest.approx(metrics["val/iou_Sky_at_12x16"], abs=1e-4)


def near_another_class(mask):
    """Pixels that another class gets to when it grows by one pixel to all sides."""
    grown = {c: binary_dilation(mask == c, np.ones((3, 3))) for c in range(11)}
    return np.any([grown[c] & (mask != c) & (mask != 255) for c in range(11)], axis=0)


@pytest.mark.parametrize("kind", [SourceOnly, DACS])
def test_pixels_near_borders_and_away_from_them_are_scored_apart(kind):
    """In one pass, beside another size and with classes that count as others."""
    torch.manual_seed(0)
    scoring = Scoring(sizes=[(12, 16)], merged={"Pole": "Building", "Tree": "Sky"}, border=1)
    module, data = kind(network=CountedNetwork(), label_space="camvid", scoring=scoring), tiny_data()
    (metrics,) = Trainer(logger=False, **QUIET).validate(module, datamodule=data, verbose=False)
    assert module.student.passes == 3
    assert list(metrics) == [
        *("val/miou", "val/miou_at_12x16", "val/miou_within_1px_of_borders", "val/miou_beyond_1px_of_borders"),
    ]
    merged = torch.arange(11)
    merged[2], merged[5] = 1, 0
    found = {scope: confusion.compute() for scope, confusion in module.confusions().items()}
    for scope, counts in {
        "within_1px_of_borders": near_another_class,
        "beyond_1px_of_borders": lambda mask: ~near_another_class(mask),
    }.items():
        expected = expected_confusion(module, data, (24, 32), merged, counts)
        assert expected.sum() > 100
        assert torch.equal(found[scope], expected)
        assert metrics[f"val/miou_{scope}"] == pytest.approx(100 * mean_iou(iou_per_class(expected)).item())
    assert torch.equal(found["within_1px_of_borders"] + found["beyond_1px_of_borders"], found[None])
    assert len(set(metrics.values())) == 4
    (tested,) = Trainer(logger=False, **QUIET).test(module, datamodule=data, verbose=False)
    assert tested == {name.replace("val/", "test/"): value for name, value in metrics.items()}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_borders_are_found_in_other_precisions_too(precision):
    modules = [SourceOnly(tiny_network(), "camvid", scoring=Scoring(border=1)) for _ in range(2)]
    for module, used in zip(modules, ("32-true", precision), strict=True):
        trainer = Trainer(logger=False, precision=used, **QUIET)
        trainer.validate(module, datamodule=tiny_data(), verbose=False)
    for scope in modules[0].confusions():
        counted = [module.confusions()[scope].compute().sum(dim=1) for module in modules]
        assert torch.equal(*counted)


def test_predictions_of_merged_classes_count_as_others():
    scoring = Scoring(merged={"Pole": "Building", "Tree": "Sky"})
    module, data = SourceOnly(tiny_network(), "camvid", scoring=scoring), tiny_data()
    (metrics,) = Trainer(logger=False, **QUIET).validate(module, datamodule=data, verbose=False)
    merged = torch.arange(11)
    merged[2], merged[5] = 1, 0
    assert metrics["val/miou"] == pytest.approx(expected_miou(module, data, (24, 32), merged))
    assert metrics["val/miou"] != pytest.approx(expected_miou(module, data, (24, 32)))


def test_an_inference_policy_is_used_for_scores_and_predictions():
    policy = MultiScale(SlidingWindow((12, 12), (8, 8)), scales=[0.5, 1.0])
    module = SourceOnly(tiny_network(), "camvid", inference=policy)
    data = tiny_data(predict=TinyDataset(length=1, has_labels=False))
    Trainer(logger=False, **QUIET).validate(module, datamodule=data, verbose=False)
    assert module.confusion.compute().sum() > 0
    (prediction,) = Trainer(logger=False, **QUIET).predict(module, datamodule=data)
    image = torch.from_numpy(data.predict.load_image(0)).permute(2, 0, 1)[None] / 255
    expected = policy(module.student.eval(), image, (24, 32)).argmax(dim=1)
    assert torch.equal(prediction["pred"].long(), expected)


def test_class_counts_must_agree():
    with pytest.raises(
        ValueError, match=r"network has 11 classes, the label space 'cityscapes' has 19.*num_classes=19"
    ):
        SourceOnly(tiny_network(), "cityscapes")


def test_a_checkpoint_of_other_classes_or_another_network_is_refused(tmp_path):
    module, _ = train(tmp_path)
    checkpoint = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)
    other = SourceOnly(tiny_network(num_classes=19), "cityscapes")
    with pytest.raises(ValueError, match=r"trained on 11 classes \['Sky'.*this run has 19"):
        other.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"doesn't fit SourceOnly: .* e\.g\. \['teacher\."):
        SourceOnly(tiny_network(), "camvid").on_load_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)


def test_runs_without_a_number_of_steps_are_refused():
    trainer = Trainer(max_epochs=1, limit_train_batches=1, logger=False, enable_checkpointing=False, **QUIET)
    with pytest.raises(ValueError, match=r"trainer\.max_steps: found -1"):
        trainer.fit(SourceOnly(tiny_network(), "camvid"), datamodule=tiny_data(val=None))


def test_random_numbers_of_a_step_depend_on_seed_and_step():
    draws = {
        (seed, step): torch.rand(
            3, generator=SourceOnly(tiny_network(), "camvid", seed=seed).step_generator(step)
        ).tolist()
        for seed in (0, 1)
        for step in (0, 1)
        for _ in range(2)
    }
    assert len({tuple(draw) for draw in draws.values()}) == 4


def test_predictions_have_the_sizes_of_the_files():
    data = tiny_data(predict=TinyDataset(length=2, size=(20, 44), has_labels=False))
    predictions = Trainer(logger=False, **QUIET).predict(SourceOnly(tiny_network(), "camvid"), datamodule=data)
    assert [p["pred"].shape for p in predictions] == [(1, 20, 44)] * 2
    assert predictions[0]["pred"].dtype == torch.uint8
    assert predictions[0]["name"] == ["tiny_0_0"]


def test_losses_on_a_gpu_are_logged_from_the_cpu_where_reading_them_again_waits_for_nothing(monkeypatch):
    module, devices = SourceOnly(tiny_network(), "camvid"), {}
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    module._trainer = SimpleNamespace(log_every_n_steps=1, global_step=0, optimizers=[optimizer])
    monkeypatch.setattr(module, "log", lambda name, value: None)
    monkeypatch.setattr(
        module,
        "log_dict",
        lambda values, prog_bar: devices.update({name: value.device.type for name, value in values.items()}),
    )
    with FakeTensorMode():
        values = {name: torch.ones((), device="cuda") for name in ("loss", "lambda")}
        module.log_step({"loss": values["loss"], "lambda": lambda: values["lambda"]})
    assert devices == {"train/loss": "cpu", "train/lambda": "cpu"}


def test_a_text_takes_the_place_of_a_text_but_not_of_a_network():
    module = SourceOnly(tiny_network(), "camvid")
    module.note = "first"
    module.note = None
    module.note = "second"
    assert module.note == "second"
    with pytest.raises(TypeError, match="student"):
        module.student = "second"


@pytest.mark.parametrize(("steps", "warned"), [(3, True), (4, False)])
def test_steps_that_will_not_be_evaluated_are_warned_of(steps, warned, caplog):
    settings = {
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "logger": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(max_steps=steps, **settings, **QUIET)
    trainer.fit(SourceOnly(tiny_network(), "camvid"), datamodule=tiny_data())
    assert ("the last 1 batches are not evaluated" in caplog.text) == warned


def test_a_method_trains_on_plain_loaders_too():
    data = tiny_data(val=None)
    trainer = Trainer(max_steps=2, logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(DACS(network=tiny_network(), label_space="camvid"), data.train_dataloader())
    assert trainer.global_step == 2


class Scaled(Term):
    """A term with a parameter of its own."""

    def __init__(self):
        super().__init__(weight=1.0)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, step):
        return (self.scale * self.view(step, "source").logits).square().mean()


def test_parameters_of_terms_are_trained_at_the_base_rate():
    module = SourceOnly(tiny_network(), "camvid", terms={"scaled": Scaled()}, schedule=Constant())
    trainer = Trainer(max_steps=2, logger=False, enable_checkpointing=False, **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None))
    assert module.terms["scaled"].scale != 1
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["backbone", "classifier", "terms"]
    assert trainer.optimizers[0].param_groups[-1]["lr"] == 2.5e-4


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(ValueError, match="found a second term 'feature'; DSP has one of that name already"):
        DSP(network=tiny_network(), label_space="camvid", terms={"feature": Scaled()})


@pytest.mark.parametrize(("policy", "warned"), [("frozen_affine", True), ("eval", True), ("train", False)])
def test_random_weights_under_fixed_batch_norm_are_warned_of(policy, warned, tmp_path, capsys):
    module = SourceOnly(tiny_network(batch_norm=policy), "camvid")
    logger = CSVLogger(tmp_path, name="", version="log")
    trainer = Trainer(max_steps=1, logger=logger, enable_checkpointing=False, **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None))
    notes = (tmp_path / "log/notes.txt").read_text()
    assert "weights: random at the start" in notes
    assert ("warning: The network starts from random weights, but its BatchNorm" in notes) == warned
    assert ("─ warning ─" in capsys.readouterr().out) == warned


def test_loaded_weights_are_not_called_random(tmp_path):
    network = tiny_network(batch_norm="eval")
    network.load_state_dict(network.state_dict())
    module = SourceOnly(network, "camvid")
    logger = CSVLogger(tmp_path, name="", version="log")
    Trainer(max_steps=1, logger=logger, enable_checkpointing=False, **QUIET).fit(module, datamodule=tiny_data(val=None))
    trained = sum(weights.numel() for weights in network.parameters() if weights.requires_grad)
    assert (tmp_path / "log/notes.txt").read_text().splitlines() == [
        f"network: TinyNetwork, {trained / 1e6:.3g} million trained parameters",
        "optimiser: SGD, one update per step (clean)",
    ]


def test_notes_that_are_no_text_are_named_before_the_first_step(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="log")
    (tmp_path / "log").mkdir()
    (tmp_path / "log/notes.txt").write_bytes(b"\xff")
    trainer = Trainer(max_steps=1, logger=logger, enable_checkpointing=False, **QUIET)
    with pytest.raises(ValueError, match=r"notes\.txt: found bytes that aren't text in UTF-8"):
        trainer.fit(SourceOnly(tiny_network(), "camvid"), datamodule=tiny_data(val=None))
    assert trainer.global_step == 0
    assert (tmp_path / "log/notes.txt").read_bytes() == b"\xff"


def test_names_of_terms_hold_no_dot():
    with pytest.raises(ValueError, match=r"model\.terms: found the name 'a\.b'; expected one without a dot"):
        SourceOnly(tiny_network(), "camvid", terms={"a.b": Scaled()})


def test_random_numbers_go_on_from_epoch_to_epoch():
    drawn = []

    class Draws(SourceOnly):
        def algorithm(self, step):
            drawn.append(torch.rand(1, generator=step.generator).item())
            super().algorithm(step)

    stream = tiny_data(val=None).train_dataloader().dataset
    loader = DataLoader([stream.batch(number) for number in range(2)], batch_size=None)
    trainer = Trainer(max_steps=6, logger=False, enable_checkpointing=False, **QUIET)
    module = Draws(tiny_network(), "camvid")
    trainer.fit(module, loader)
    assert len(set(drawn)) == 6
    assert drawn == [torch.rand(1, generator=module.step_generator(number)).item() for number in range(6)]
    assert module.last_views == {}


def test_a_resumed_run_still_says_that_it_began_with_random_weights(tmp_path):
    def fit(steps, version, ckpt_path=None):
        module = SourceOnly(tiny_network(batch_norm="eval"), "camvid", schedule=Constant())
        logger = CSVLogger(tmp_path, name="", version=version)
        trainer = Trainer(max_steps=steps, logger=logger, enable_checkpointing=False, **QUIET)
        trainer.fit(module, datamodule=tiny_data(val=None), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{version}.ckpt")
        return (tmp_path / version / "notes.txt").read_text()

    assert "warning: The network starts from random" in fit(1, "first")
    assert "warning: The network starts from random" in fit(2, "second", tmp_path / "first.ckpt")


def test_strategies_that_split_networks_are_refused():
    method = SourceOnly(network=tiny_network(), label_space="camvid")
    method._trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(ValueError, match=r"trainer.strategy: found FSDPStrategy, which spreads .* Take `ddp`"):
        method.setup("fit")
