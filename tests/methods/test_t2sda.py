import pytest
import torch
from lightning.pytorch import Trainer

from lightning_uda.callbacks import EMATeacher
from lightning_uda.methods import T2SDA, DAFormer, T2SDAGeneralization
from lightning_uda.optim import Constant
from lightning_uda.pseudo_labels import BatchConfidence, DynamicClassWeights, FixedClassWeights, dynamic_weights
from lightning_uda.terms import Pull
from lightning_uda.translation import FourierTranslation
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET


def t2sda(**options):
    options = {"feature_distance": None, "schedule": Constant(), **options}
    return T2SDA(network=tiny_network(), label_space="camvid", **options)


def run(module, steps=3):
    trainer = Trainer(max_steps=steps, log_every_n_steps=1, **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None))
    return torch.cat([p.detach().flatten() for p in module.student.backbone.parameters()]), trainer.logged_metrics


def of(**options):
    return Pull(translation=None, n=8, m=32, **options)


def test_without_its_parts_it_is_daformer():
    plain = DAFormer(network=tiny_network(), label_space="camvid", feature_distance=None, schedule=Constant())
    module = t2sda(pull=None, translation=None, teacher_statistics="batch")
    assert torch.equal(run(module)[0], run(plain)[0])


DIRECTIONS = {
    "with FDA": {"pull": None, "ce_on": "pseudo_target"},
    "vanilla contrast": {"pull": of(query="source", negatives="source"), "translation": None},
    "source to target": {"pull": of(query="source", positive="target"), "translation": None},
    "source to pseudo-target": {"pull": of(query="source", positive="pseudo_target")},
    "negatives of the source": {"pull": of(negatives="source")},
    "T2S-DA": {"pull": of()},
    "taught on pseudo-targets": {"pull": of(), "ce_on": "pseudo_target"},
    "MSE": {"pull": of(objective="mse")},
    "DRW on the target": {"pull": None, "class_weighting": DynamicClassWeights()},
    "teacher in train mode": {"pull": of(), "teacher_statistics": "batch"},
}


@pytest.fixture(scope="module")
def runs():
    return {name: run(t2sda(**options)) for name, options in DIRECTIONS.items()}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_row_of_the_papers_tables_trains_and_differs(runs, name):
    weights, logged = runs[name]
    taught = DIRECTIONS[name].get("ce_on", "source")
    expected = {"train/loss", "train/loss_mixed", f"train/loss_{taught}"}
    expected |= {"train/loss_pull"} if DIRECTIONS[name]["pull"] is not None else set()
    assert {key for key in logged if "loss" in key} == expected
    assert all(value.isfinite() for value in logged.values())
    assert not any(torch.equal(weights, other) for key, (other, _) in runs.items() if key != name)


def test_pseudo_targets_are_source_images_in_the_targets_style():
    module = t2sda(pull=of())
    batch = {
        name: {"image": torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), "mask": torch.zeros(2, 16, 16).long()}
        for name in ("source", "target")
    }
    module.log_step = lambda values: None
    module.training_step(batch, 0)
    assert set(module.last_views) == {"source", "mixed", "pseudo_target"}
    source, target = (batch[name]["image"] / 255 for name in ("source", "target"))
    expected = FourierTranslation()(source, torch.Generator(), target)
    torch.testing.assert_close(module.last_views["pseudo_target"].image, expected)
    assert torch.equal(module.last_views["pseudo_target"].labels[0].mask, batch["source"]["mask"])


def test_the_teacher_stays_in_eval_mode_and_takes_the_students_statistics():
    module = t2sda(pull=of())
    run(module)
    module.train()
    assert not any(part.training for part in module.teacher.modules())
    assert module.student.attached["pull"][1].training
    for mine, theirs in zip(module.student.buffers(), module.teacher.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert module.teacher.attached["pull"][1].running_mean.abs().sum() > 0


def test_a_teacher_in_train_mode_keeps_statistics_of_its_own():
    module = t2sda(pull=of(), teacher_statistics="batch")
    run(module)
    module.train()
    assert module.teacher.backbone[1].training
    assert not torch.equal(module.teacher.backbone[1].running_mean, module.student.backbone[1].running_mean)


def test_classes_weigh_in_the_targets_loss():
    module = t2sda(class_weighting=DynamicClassWeights(), pixel_weighting=BatchConfidence(0.0))
    labels, confidence = torch.randint(0, 11, (2, 8, 4)), torch.rand(2, 8, 4)
    weights = module.target_weights(labels, confidence)
    expected = dynamic_weights(labels, confidence, 11)[labels]
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"translation": None, "ce_on": "pseudo_target"}, "ce_on: pseudo_target, but translation: null"),
        ({"pull": Pull()}, "pull.translation: FourierTranslation"),
        ({"class_weighting": FixedClassWeights()}, "19 weights for 11 classes"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        t2sda(**options)


def test_it_generalises_without_target_images():
    module = T2SDAGeneralization(network=tiny_network(), label_space="camvid", schedule=Constant())
    weights, logged = run(module)
    assert {key for key in logged if "loss" in key} == {"train/loss", "train/loss_source", "train/loss_pull"}
    assert logged["train/loss_pull"] > 0
    fourier = T2SDAGeneralization(
        network=tiny_network(), label_space="camvid", schedule=Constant(), translation=FourierTranslation()
    )
    of_source = run(fourier)[0]
    assert not torch.equal(of_source, weights)
    assert fourier.streams == ("source",)
    painted = T2SDAGeneralization(
        network=tiny_network(),
        label_space="camvid",
        schedule=Constant(),
        translation=FourierTranslation(),
        style="target",
    )
    assert painted.streams == ("source", "target")
    assert not torch.equal(run(painted)[0], of_source)


def test_the_teachers_decay_is_the_papers():
    module = t2sda()
    Trainer(max_steps=1, **QUIET).fit(module, datamodule=tiny_data(val=None))
    (ema,) = (callback for callback in module.trainer.callbacks if isinstance(callback, EMATeacher))
    assert (ema.decay, ema.warmup, ema.buffers) == (0.999, True, "copy")
