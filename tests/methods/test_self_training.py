import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback, Trainer

from lightning_uda.callbacks import AdaptBatchNorm, SelfTrainingRounds
from lightning_uda.cli import run_trainer
from lightning_uda.methods import SelfTraining, SourceOnly
from lightning_uda.networks import WeightsError, find_checkpoint
from lightning_uda.optim import Poly
from lightning_uda.self_training.losses import LRENT, MRKLD
from lightning_uda.self_training.scaled_crop import ScaledCrop
from lightning_uda.self_training.spatial_prior import SpatialPrior
from tests.fixtures.configs import CONFIGS
from tests.fixtures.tiny import TinyDataset, tiny_data, tiny_network

QUIET = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
    "accelerator": "cpu",
}


def data_of(**kwargs):
    return tiny_data(
        source_transform=ScaledCrop((16, 16)), target_transform=ScaledCrop((16, 16)), **{"val": None, **kwargs}
    )


def one_round(**kwargs):
    return SelfTrainingRounds(num_rounds=1, epochs_per_round=1, **kwargs)


def trained_source(folder, num_classes=11):
    """Checkpoint of a source-only run, in a run folder."""
    names = "camvid" if num_classes == 11 else "cityscapes"
    module = SourceOnly(tiny_network(seed=5, num_classes=num_classes), names)
    trainer = Trainer(max_steps=1, **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None))
    path = folder / "checkpoints/last.ckpt"
    trainer.save_checkpoint(path)
    return module, path


def test_a_step_is_the_cross_entropy_of_all_labelled_pixels_of_the_batch():
    module = SelfTraining(network=tiny_network(), label_space="camvid")
    module.log_step = lambda values: None
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (4, 3, 24, 32), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, 11, (4, 24, 32), dtype=torch.uint8, generator=generator)
    mask[1, :, 4:] = 255  # few labels in a target image: it weighs less
    batch = {"union": {"image": image, "mask": mask, "is_target": torch.tensor([0, 1, 0, 1], dtype=torch.uint8)}}
    logits = F.interpolate(module.student(image / 255), (24, 32), mode="bilinear", align_corners=True)
    expected = F.cross_entropy(logits, mask.long(), ignore_index=255)
    torch.testing.assert_close(module.training_step(batch, 0), expected)
    batch["union"]["mask"] = torch.full_like(mask, 255)
    assert module.training_step(batch, 0) == 0


def test_it_starts_from_source_trained_weights(tmp_path):
    source, path = trained_source(tmp_path / "source/version_0")
    for given in (path, tmp_path / "source", tmp_path / "source/version_0"):
        module = SelfTraining(network=tiny_network(), label_space="camvid", rounds=one_round(), init_from=str(given))
        module.take_over(module.init_from)
        for name, tensor in source.student.state_dict().items():
            assert torch.equal(tensor, module.student.state_dict()[name])


def test_rounds_start_from_the_last_step_of_the_source_run_not_its_best(tmp_path, monkeypatch):
    mious = iter([30.0, 20.0, 10.0, 5.0])
    monkeypatch.setattr(SourceOnly, "_log_miou", lambda self, stage: self.log(f"{stage}/miou", next(mious)))
    dataset = {"class_path": "tests.fixtures.tiny.TinyDataset"}
    sets = {name: dataset for name in ("source", "val")}
    content = {
        "name": "source_only",
        "data": {"class_path": "UDADataModule", "init_args": {"label_space": "camvid", "num_workers": 0, **sets}},
        "model": {
            "class_path": "SourceOnly",
            "init_args": {"network": {"class_path": "tests.fixtures.tiny.TinyNetwork"}},
        },
        "trainer": {"include": str(CONFIGS / "schedule/minicity.yaml"), "max_steps": 8, "val_check_interval": 2},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    options = ["--output", str(tmp_path), "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]
    source = run_trainer(["fit", "--config", str(tmp_path / "config.yaml"), *options]).model.student.state_dict()
    folder = tmp_path / "source_only"
    assert len(list(folder.glob("version_0/checkpoints/best_step2_*.ckpt"))) == 1
    assert torch.load(find_checkpoint(folder), weights_only=True)["global_step"] == 8
    module = SelfTraining(network=tiny_network(), label_space="camvid", rounds=one_round(), init_from=str(folder))
    module.take_over(module.init_from)
    assert all(torch.equal(tensor, source[name]) for name, tensor in module.student.state_dict().items())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("schedule/*.yaml")), ids=lambda path: path.stem)
def test_shipped_schedules_keep_the_last_step_whatever_its_score(path):
    keepers = [c["init_args"] for c in yaml.safe_load(path.read_text())["callbacks"] if "Checkpoint" in c["class_path"]]
    last = [kept for kept in keepers if kept.get("filename") == "last" or kept.get("save_last")]
    assert len(last) == 1
    assert "monitor" not in last[0]


class Statistics(Callback):
    """Keeps the network as it is before each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append({name: tensor.clone() for name, tensor in pl_module.student.state_dict().items()})


MEAN, VAR, SCALE = (f"backbone.1.{name}" for name in ("running_mean", "running_var", "weight"))


def rounds_from(path, batch_norm, *callbacks, **trainer):
    """A run of rounds of a network with this policy; the states before each step and after the last."""
    seen = Statistics()
    module = SelfTraining(
        network=tiny_network(batch_norm=batch_norm),
        label_space="camvid",
        rounds=one_round(),
        init_from=str(path),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
    )
    Trainer(callbacks=[seen, *callbacks], **{**QUIET, **trainer}).fit(module, datamodule=data_of(val=TinyDataset(3)))
    return [*seen.seen, module.student.state_dict()]


@pytest.mark.parametrize("batch_norm", ["frozen_statistics", "eval"])
def test_frozen_statistics_are_those_of_the_source_run_and_never_move(tmp_path, batch_norm):
    source, path = trained_source(tmp_path)
    trained = source.student.state_dict()
    assert source.student.batch_norm == "train"
    assert not torch.equal(trained[MEAN], tiny_network().state_dict()[MEAN])
    states = rounds_from(path, batch_norm)
    assert len(states) == 10
    assert all(torch.equal(state[name], trained[name]) for state in states for name in (MEAN, VAR))
    assert torch.equal(states[-1][SCALE], trained[SCALE]) == (batch_norm == "eval")
    assert not torch.equal(states[-1]["classifier.weight"], trained["classifier.weight"])
    assert not torch.equal(rounds_from(path, "train")[-1][MEAN], trained[MEAN])


def test_rounds_may_start_from_the_target_domains_statistics_and_keep_them(tmp_path):
    source, path = trained_source(tmp_path)
    data = data_of()
    images = torch.stack([torch.from_numpy(data.target.load_image(i)).permute(2, 0, 1) for i in range(7)]) / 255
    student = source.student
    inner = student.backbone[0](student.normalization(images)).detach()
    states = rounds_from(path, "frozen_statistics", AdaptBatchNorm(batch_size=7, when="start"))
    torch.testing.assert_close(states[0][MEAN], inner.mean((0, 2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(states[0][VAR], inner.var((0, 2, 3)), rtol=1e-4, atol=0)
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in (MEAN, VAR))
    assert torch.equal(states[0]["classifier.weight"], student.classifier.weight)


def test_unusable_source_runs_are_refused_before_training(tmp_path):
    _, path = trained_source(tmp_path / "other", num_classes=19)
    module = SelfTraining(network=tiny_network(), label_space="camvid", init_from=str(path))
    with pytest.raises(ValueError, match=r"last.ckpt: trained on 19 classes \['road'.*this run has 11 \['Sky'"):
        Trainer(**QUIET).fit(module, datamodule=data_of())
    torch.save(tiny_network(num_classes=7).state_dict(), tmp_path / "weights.pth")
    module = SelfTraining(network=tiny_network(), label_space="camvid", init_from=str(tmp_path / "weights.pth"))
    with pytest.raises(WeightsError, match=r"classifier.weight \(file \(7, 8, 1, 1\), network \(11, 8, 1, 1\)\)"):
        Trainer(**QUIET).fit(module, datamodule=data_of())
    module = SelfTraining(network=tiny_network(), label_space="camvid", init_from=str(tmp_path / "none.ckpt"))
    with pytest.raises(FileNotFoundError, match="found no such file"):
        Trainer(**QUIET).fit(module, datamodule=data_of())


def test_without_a_source_run_it_says_so_but_not_when_it_resumes(tmp_path, caplog):
    def fit(ckpt_path=None):
        module = SelfTraining(network=tiny_network(), label_space="camvid", rounds=one_round())
        trainer = Trainer(**QUIET)
        trainer.fit(module, datamodule=data_of(), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "end.ckpt")

    fit()
    assert "init_from isn't set" in caplog.text
    caplog.clear()
    fit(tmp_path / "end.ckpt")
    assert "init_from isn't set" not in caplog.text


@pytest.mark.parametrize("loss", [MRKLD(), LRENT()])
def test_regularised_losses_train(loss):
    module = SelfTraining(network=tiny_network(), label_space="camvid", rounds=one_round(), loss=loss)
    trainer = Trainer(**QUIET)
    trainer.fit(module, datamodule=data_of())
    assert trainer.global_step == trainer.max_steps == 9  # 7 target and 10 source images, by 2
    assert all(torch.isfinite(parameter).all() for parameter in module.student.parameters())
    assert not torch.equal(module.student.classifier.weight, tiny_network().classifier.weight)


def test_soft_labels_and_a_spatial_prior_are_refused():
    with pytest.raises(ValueError, match="found the loss LRENT and a spatial prior"):
        SelfTraining(
            network=tiny_network(),
            label_space="camvid",
            rounds=one_round(spatial_prior=SpatialPrior((16, 16), radius=2)),
            loss=LRENT(),
        )


def test_soft_labels_come_from_the_network_that_the_round_started_with():
    rounds = SelfTrainingRounds(num_rounds=2, epochs_per_round=1)
    module = SelfTraining(
        network=tiny_network(),
        label_space="camvid",
        rounds=rounds,
        loss=LRENT(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
    )
    kept = []
    begin = module.begin_round

    def record():
        begin()
        kept.append({name: tensor.clone() for name, tensor in module.student.state_dict().items()})

    module.begin_round = record
    Trainer(**QUIET).fit(module, datamodule=data_of())
    assert len(kept) == 2
    for name, tensor in module.starting_network.state_dict().items():
        assert torch.equal(tensor, kept[1][name])
    assert not torch.equal(kept[0]["classifier.weight"], kept[1]["classifier.weight"])
    assert not any(parameter.requires_grad for parameter in module.starting_network.parameters())
    assert SelfTraining(network=tiny_network(), label_space="camvid").starting_network is None


def test_a_schedule_counts_the_steps_of_all_rounds():
    module = SelfTraining(
        network=tiny_network(),
        label_space="camvid",
        rounds=SelfTrainingRounds(num_rounds=2, epochs_per_round=1, lr_round_factor=0.5),
        optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        schedule=Poly(power=1.0),
    )
    trainer = Trainer(**QUIET)
    trainer.fit(module, datamodule=data_of())
    assert trainer.max_steps == 18
    factors = [module.schedule.factor(step, 18) for step in (0, 8, 9, 17)]
    assert factors == pytest.approx([1, 10 / 18, 0.5 * 9 / 18, 0.5 / 18])
