import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_uda.callbacks import EMATeacher
from lightning_uda.data.margins import Margins
from lightning_uda.methods import DAFormer
from lightning_uda.mixing import BoxMask, ClassMask, paste_mask_of
from lightning_uda.optim import Constant, Poly
from lightning_uda.pseudo_labels import BatchConfidence, ImageConfidence
from lightning_uda.terms import FeatureDistance
from tests.fixtures.tiny import TinyNetwork, tiny_data, tiny_network
from tests.methods.test_dacs import QUIET, Replay


@pytest.mark.parametrize(("scope", "weighting"), [("batch", BatchConfidence), ("image", ImageConfidence)])
def test_labels_weights_and_loss_of_the_mix_are_the_reference(golden, scope, weighting):
    g = golden("t2sda_target_loss")
    chosen = torch.zeros(2, 256, dtype=torch.bool)
    for image, classes in enumerate(g["chosen_classes"]):
        chosen[image, classes[classes >= 0]] = True
    student = Replay(torch.zeros(2, 19, 16, 20), g["student_logits"])
    module = DAFormer(
        network=Replay(),
        label_space="cityscapes",
        pixel_weighting=weighting(float(g["delta"])),
        feature_distance=None,
        augmentation=None,
        paste_mask=lambda mask, _: paste_mask_of(mask, chosen),
    )
    module.student, module.teacher = student, Replay(g["teacher_logits"])
    logged = {}
    module.log_step = lambda values: logged.update(values)
    image = torch.rand(2, 3, 16, 20)
    void = Margins(top=int(g["ignore_top"]), bottom=int(g["ignore_bottom"])).void((16, 20))
    target = {"image": image, "valid": torch.from_numpy((void == 0).astype("uint8")).expand(2, 16, 20)}
    module.training_step({"source": {"image": image, "mask": g["label_src"].long()}, "target": target}, 0)
    mixed = module.last_views["mixed"]
    (labels,) = mixed.labels
    assert torch.equal(mixed.opacity, g["mix_mask"])
    assert torch.equal(labels.mask.long(), g["mixed_label"].long())
    assert torch.allclose(labels.weights, g[f"mixed_weight_{scope}"].float(), atol=1e-6)
    assert logged["loss_mixed"].item() == pytest.approx(g[f"loss_{scope}_mean_all"].item(), rel=1e-5)
    valid = (g["label_src"] != 255).float().mean().item()  # zero logits cost log 19, the mean is over all pixels
    assert logged["loss_source"].item() == pytest.approx(valid * torch.tensor(19.0).log().item(), rel=1e-5)


def test_the_rate_and_the_teachers_decay_are_the_reference(golden):
    g = golden("ehtdi_t2sda_schedules")
    schedule, teacher = Poly(power=1.0, warmup_steps=1500, warmup_ratio=1e-6), EMATeacher(decay=0.999)
    for step, encoder, head, decay in zip(
        *(g[f"daformer_{name}"].tolist() for name in ("iter", "lr_encoder", "lr_head", "ema_decay")), strict=True
    ):
        assert 6e-5 * schedule.factor(step, 40_000) == pytest.approx(encoder, rel=1e-12)
        assert 6e-4 * schedule.factor(step, 40_000) == pytest.approx(head, rel=1e-12)
        assert teacher.alpha(step) == pytest.approx(decay, rel=1e-12)
    poly = Poly(power=0.9)
    for step, backbone in zip(g["ehtdi_iter"].tolist(), g["ehtdi_lr_backbone"].tolist(), strict=True):
        assert 2.5e-4 * poly.factor(step, 250_000) == pytest.approx(backbone, rel=1e-12)


def test_classes_are_those_of_the_whole_batch():
    mask = torch.tensor([0, 1, 2, 3]).view(4, 1, 1).expand(4, 2, 2)
    pasted = torch.stack(
        [ClassMask(of_batch=True)(mask, torch.Generator().manual_seed(i)).flatten(1)[:, 0] for i in range(200)]
    )
    alone = ClassMask()(mask, torch.Generator().manual_seed(0))
    assert alone.all()  # one class alone, of which half is one
    assert pasted.float().mean(dim=0).tolist() == pytest.approx([0.5] * 4, abs=0.12)


def daformer(**options):
    options = {"feature_distance": None, "schedule": Constant(), **options}
    return DAFormer(network=tiny_network(), label_space="camvid", **options)


def run(seed=0, **options):
    module = daformer(seed=seed, **options)
    trainer = Trainer(max_steps=3, log_every_n_steps=1, **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None, target_margins=Margins(top=1, bottom=2, left=3)))
    return torch.cat([p.detach().flatten() for p in module.student.parameters()]), trainer.logged_metrics, module


def test_the_seed_decides_the_run():
    assert torch.equal(run()[0], run()[0])
    assert not torch.equal(run()[0], run(seed=1)[0])


@pytest.mark.parametrize(
    "options",
    [{"feature_distance": FeatureDistance(classes=None)}, {"augmentation": None}, {"paste_mask": BoxMask()}],
)
def test_parts_change_the_run(options):
    weights, logged, _ = run(**options)
    assert not torch.equal(weights, run()[0])
    assert all(value.isfinite() for value in logged.values())


def test_pixels_that_are_not_valid_have_no_weight_unless_something_is_pasted_on_them():
    module = daformer(pixel_weighting=BatchConfidence(0.0), augmentation=None, paste_mask=lambda mask, _: mask == 1)
    module.log_step, algorithm, views = lambda values: None, module.algorithm, {}
    module.algorithm = lambda step: (algorithm(step), views.update(step.views))
    batch = {"source": {"image": torch.rand(2, 3, 16, 16), "mask": torch.randint(0, 2, (2, 16, 16))}}
    valid = torch.randint(0, 2, (2, 16, 16), dtype=torch.uint8)
    for given, expected in (({"valid": valid}, valid.float()), ({}, torch.ones(2, 16, 16))):
        module.training_step({**batch, "target": {"image": torch.rand(2, 3, 16, 16), **given}}, 0)
        mixed, target = (views[name].labels[0] for name in ("mixed", "target"))
        assert torch.equal(mixed.weights, torch.where(batch["source"]["mask"] == 1, 1.0, expected))
        assert torch.equal(target.weights, expected)


def test_the_teacher_normalises_by_the_batch_but_drops_nothing():
    class Dropping(TinyNetwork):
        def __init__(self):
            super().__init__()
            self.backbone.append(nn.Dropout(0.5))

    module = DAFormer(network=Dropping(), label_space="camvid", feature_distance=None)
    module.eval()
    module.train()  # as after a validation
    image = torch.rand(2, 3, 24, 32)
    assert torch.equal(module.teacher(image), module.teacher(image))
    assert not torch.equal(module.student(image), module.student(image))
    before = module.teacher.backbone[1].running_mean.clone()
    module.teacher(image)
    assert not torch.equal(module.teacher.backbone[1].running_mean, before)
    _, _, module = run()
    (callback,) = (each for each in module.trainer.callbacks if isinstance(each, EMATeacher))
    assert (callback.decay, callback.buffers) == (0.999, "own")
