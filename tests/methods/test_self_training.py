import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from lightning_uda.callbacks import SelfTrainingRounds
from lightning_uda.methods import SelfTraining, SourceOnly
from lightning_uda.methods.self_training import find_checkpoint
from lightning_uda.networks import WeightsError
from lightning_uda.optim import Poly
from lightning_uda.self_training.losses import LRENT, MRKLD
from lightning_uda.self_training.scaled_crop import ScaledCrop
from lightning_uda.self_training.spatial_prior import SpatialPrior
from tests.fixtures.tiny import tiny_data, tiny_network

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


def source_checkpoint(folder, num_classes=11):
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
    source, path = source_checkpoint(tmp_path / "source/version_0")
    for given in (path, tmp_path / "source", tmp_path / "source/version_0"):
        module = SelfTraining(
            network=tiny_network(), label_space="camvid", rounds=one_round(), source_checkpoint=str(given)
        )
        module.trainer = Trainer(**QUIET)
        module.setup("fit")
        for name, tensor in source.student.state_dict().items():
            assert torch.equal(tensor, module.student.state_dict()[name])


def test_the_latest_version_of_a_run_is_taken(tmp_path):
    for version in (2, 9, 10, 11):
        (tmp_path / f"version_{version}/checkpoints").mkdir(parents=True)
    for version in (2, 9, 10):
        (tmp_path / f"version_{version}/checkpoints/last.ckpt").touch()
    assert find_checkpoint(tmp_path) == tmp_path / "version_10/checkpoints/last.ckpt"
    for path in ("version_11", "nothing"):
        with pytest.raises(FileNotFoundError, match=rf"{path}: found no such file, and no checkpoints/last.ckpt in it"):
            find_checkpoint(tmp_path / path)


def test_unusable_source_checkpoints_are_refused_before_training(tmp_path):
    _, path = source_checkpoint(tmp_path / "other", num_classes=19)
    module = SelfTraining(network=tiny_network(), label_space="camvid", source_checkpoint=str(path))
    with pytest.raises(ValueError, match=r"last.ckpt: trained on 19 classes \['road'.*this run has 11 \['Sky'"):
        Trainer(**QUIET).fit(module, datamodule=data_of())
    torch.save(tiny_network(num_classes=7).state_dict(), tmp_path / "weights.pth")
    module = SelfTraining(network=tiny_network(), label_space="camvid", source_checkpoint=str(tmp_path / "weights.pth"))
    with pytest.raises(WeightsError, match=r"classifier.weight \(file \(7, 8, 1, 1\), network \(11, 8, 1, 1\)\)"):
        Trainer(**QUIET).fit(module, datamodule=data_of())
    module = SelfTraining(network=tiny_network(), label_space="camvid", source_checkpoint=str(tmp_path / "none.ckpt"))
    with pytest.raises(FileNotFoundError, match="found no such file"):
        Trainer(**QUIET).fit(module, datamodule=data_of())


def test_without_a_source_checkpoint_it_says_so(caplog):
    Trainer(**QUIET).fit(
        SelfTraining(network=tiny_network(), label_space="camvid", rounds=one_round()), datamodule=data_of()
    )
    assert "source_checkpoint isn't set" in caplog.text


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
