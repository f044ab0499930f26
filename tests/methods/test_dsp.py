import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from lightning_uda.callbacks import LongTailStatistics
from lightning_uda.methods import DSP
from lightning_uda.mixing import (
    FirstTermConsistency,
    LiteralConsistency,
    TwoTermConsistency,
    paste_mask_of,
    soft_paste,
)
from lightning_uda.networks.base import Classifier, Outputs
from lightning_uda.optim import Constant
from lightning_uda.pseudo_labels import BatchConfidence, UniformWeights, pseudo_label
from lightning_uda.resize import upsample
from lightning_uda.step import Labels
from lightning_uda.terms import FeatureMMD, mmd
from lightning_uda.terms.feature_mmd import masked_mean
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_dacs import QUIET, Replay


class ReplayFeatures(Replay):
    """Answers with given logits, and from its second batch on with given features too."""

    def __init__(self, answers, features=()):
        super().__init__(*answers)
        self.features = features

    def outputs(self, image):
        logits = self(image)
        return Outputs((Classifier(logits),), (self.features[len(self.shown) - 2],))


@pytest.fixture
def step(golden):
    """Runs the real training step on the arrays of `dsp_step_paper`; returns them, its loss, losses and module."""
    g = golden("dsp_step_paper")
    chosen = torch.zeros(2, 256, dtype=torch.bool)
    for image in range(2):
        chosen[image, g[f"chosen_classes_{image}"]] = True
    classes = g["long_tail_classes"].tolist()
    labels = [[g[f"lt_label_{image}_{i}"].long() for i in range(2)] for image in range(2)]
    tail = {
        "image": torch.stack([torch.stack([g[f"lt_image_{image}_{i}"] for i in range(2)]) for image in range(2)]),
        "mask": torch.stack(
            [
                torch.stack([found.where(found == c, torch.tensor(255)) for found, c in zip(row, classes, strict=True)])
                for row in labels
            ]
        ),
    }
    batch = {
        "source": {"image": g["source_image"], "mask": g["source_label"]},
        "template": {"image": g["template_image"], "mask": g["template_label"]},
        "target": {"image": g["target_image"]},
        "tail": tail,
    }

    def run(**kwargs):
        parts = ("source", "target_mixed", "source_mixed")
        logits = [g[f"student_logits_{part}"].clone().requires_grad_() for part in parts]
        features = [g[f"features_{part}"].clone().requires_grad_() for part in parts[1:]]
        alignment = {"feature_alignment": FeatureMMD(channels=None)}
        module = DSP(
            network=ReplayFeatures(()),
            label_space="cityscapes",
            augmentation=None,
            paste_mask=lambda mask, _: paste_mask_of(mask, chosen),
            **{**alignment, **kwargs},
        )
        module.student, module.teacher = ReplayFeatures(logits, features), Replay(g["teacher_logits_target"])
        logged = {}
        module.log_step = logged.update
        loss = module.training_step(batch, 0)
        loss.backward()
        return g, loss, logged, logits, features, module

    return run


def test_training_step_is_the_paper(step):
    g, loss, logged, logits, features, module = step()
    mixed = module.last_views["target_mixed"]
    assert torch.allclose(mixed.image, g["mixed_target_image"], rtol=0, atol=1e-4)
    assert torch.equal(mixed.labels[0].mask.long(), g["mixed_target_label"].long())
    assert torch.equal(module.student.shown[1], mixed.image)
    assert torch.allclose(module.student.shown[2], g["mixed_source_image"], rtol=0, atol=1e-4)
    expected = {
        "loss_source": "loss_source",
        "loss_source_mixed": "loss_soft_seg_mean_over_valid",
        "loss_target_mixed": "loss_consistency_confidence_weighted",
        "loss_feature": "loss_mmd_weighted",
    }
    for mine, theirs in expected.items():
        assert logged[mine].item() == pytest.approx(g[theirs].item(), rel=1e-5), mine
    assert logged["lambda"]().item() == pytest.approx(g["lambda_batch"].item(), rel=1e-5)
    assert logged["tail_classes"]().item() == 2
    share, opacity = g["lambda_batch"].item(), 0.8 * (g["merged_mask"] > 0).float()
    assert torch.allclose(sum(labels.weights for labels in mixed.labels), opacity + (1 - opacity) * share)
    assert loss.item() == pytest.approx(sum(g[expected[k]].item() for k in expected), rel=1e-5)
    assert torch.allclose(logits[1].grad, g["grad_consistency_confidence_weighted"], rtol=0, atol=1e-7)
    assert torch.allclose(logits[2].grad, g["grad_soft_seg_mean_over_valid"], rtol=0, atol=1e-7)
    for part, tensor in zip(("target_mixed", "source_mixed"), features, strict=True):
        assert torch.allclose(tensor.grad, g[f"grad_mmd_weighted_features_{part}"], rtol=1e-4, atol=1e-8)


def test_composite_patch_is_the_papers(step):
    g, *_, module = step()
    merged = (g["merged_mask"] > 0).unsqueeze(1)
    under = torch.where(merged, g["source_image"], torch.zeros(()))
    pasted = torch.where(merged, module.student.shown[2], torch.zeros(()))
    assert not torch.allclose(under, pasted, atol=1)
    outside = torch.where(merged, torch.zeros(()), module.student.shown[2] - g["source_image"])
    assert outside.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("consistency", "name"),
    [
        (LiteralConsistency(), "eq7_literal"),
        (TwoTermConsistency(), "code_intended"),
        (FirstTermConsistency(), "first_term_only"),
    ],
)
def test_other_forms_of_the_consistency_loss(step, consistency, name):
    g, _, logged, logits, *_ = step(consistency=consistency)
    assert logged["loss_target_mixed"].item() == pytest.approx(g[f"loss_consistency_{name}"].item(), rel=1e-5)
    if name != "first_term_only":
        assert torch.allclose(logits[1].grad, g[f"grad_consistency_{name}"], rtol=0, atol=1e-7)


def test_soft_segmentation_over_all_pixels(step):
    g, _, logged, *_ = step(soft_labels_over="all")
    assert logged["loss_source_mixed"].item() == pytest.approx(g["loss_soft_seg_mean_over_all"].item(), rel=1e-5)


def test_literal_equation_is_uniform_weights(step):
    _, _, literal, *_ = step(consistency=LiteralConsistency())
    _, _, uniform, *_ = step(pixel_weighting=UniformWeights())
    assert literal["loss_target_mixed"].item() == pytest.approx(uniform["loss_target_mixed"].item(), rel=1e-6)


class Losses(Callback):
    """Keeps what the step logs."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.logged = dict(trainer.logged_metrics)


def run(steps=3, seed=0, callbacks=(), precision="32-true", **kwargs):
    module = DSP(network=tiny_network(), label_space="camvid", schedule=Constant(), seed=seed, **kwargs)
    trainer = Trainer(
        max_steps=steps, callbacks=[Losses(), *callbacks], log_every_n_steps=1, precision=precision, **QUIET
    )
    trainer.fit(module, datamodule=tiny_data(val=None))
    return torch.cat([p.detach().flatten() for p in module.student.parameters()]), trainer


def test_parts_change_the_run_and_the_seed_decides_it():
    tail = [LongTailStatistics(num_classes=2)]
    runs = [
        run(callbacks=tail),
        run(callbacks=tail, seed=1),
        run(long_tail_k=0),
        run(long_tail_k=0, beta=1),
        run(long_tail_k=0, feature_alignment=None),
    ]
    assert len({tuple(weights.tolist()) for weights, _ in runs}) == len(runs)
    assert torch.equal(runs[0][0], run(callbacks=tail)[0])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lower_precision_trains(precision):
    weights, trainer = run(long_tail_k=0, precision=precision)
    assert weights.isfinite().all()
    assert all(value.isfinite() for value in trainer.callbacks[0].logged.values())


def test_tail_classes_are_really_pasted():
    _, trainer = run(callbacks=[LongTailStatistics(num_classes=2)])
    assert trainer.logged_metrics["train/tail_classes"] == 2
    assert 0 < trainer.logged_metrics["train/tail_pixels"] < 1


def test_brings_its_callbacks():
    _, trainer = run(long_tail_k=1, callbacks=[LongTailStatistics(num_classes=3)])
    assert sum(isinstance(callback, LongTailStatistics) for callback in trainer.callbacks) == 1
    callback = LongTailStatistics(all_chosen_classes=True)
    run(long_tail_k=1, long_tail_classes=["Sky", "Building"], callbacks=[callback])
    space, _, chosen = callback._found
    assert [space.classes[c] for c in chosen] == ["Sky", "Building"]
    _, trainer = run(long_tail_k=0)
    assert not any(isinstance(callback, LongTailStatistics) for callback in trainer.callbacks)


@pytest.mark.parametrize("wrong", [{"beta": 1.2}, {"beta": -0.1}, {"long_tail_k": -1}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="expected a number from 0"):
        DSP(network=tiny_network(), label_space="camvid", **wrong)


def test_two_modules_do_not_share_their_projection():
    first, second = DSP(network=tiny_network(), label_space="camvid"), DSP(network=tiny_network(), label_space="camvid")
    assert first.terms["feature"] is not second.terms["feature"]
    assert torch.equal(first.terms["feature"].projection, second.terms["feature"].projection)
    assert not any("feature" in name for name, _ in first.named_parameters())


def test_parts_reproduce_the_program_of_september_2021(golden):
    """Its form of every loss, and its long-tail paste: column j wherever the crop's first row holds the class."""
    g = golden("dsp_step_release_2021_09")
    beta, tail = g["beta"].item(), g["long_tail_class_sampled"][0]
    half = torch.stack([g["mask_0"], g["mask_1"]]).bool()
    labels = {name: g[f"{name}_label"].long() for name in ("source", "template")}
    mixed_masks = {"source": torch.where(half, labels["template"], labels["source"])}
    mixed_masks["target"] = torch.where(half, labels["template"], g["pseudo_label"].long())
    for name in ("target", "source"):
        mixed = soft_paste(g["template_image"], g[f"{name}_image"], beta * half)
        for image in range(2):
            columns = g[f"lt_label_{name}{image}"][0] == tail
            mixed[image, :, :, columns] = g[f"lt_image_{name}{image}"][:, :, columns]
            mixed_masks[name][image][:, columns] = g[f"lt_label_{name}{image}"][:, columns].long()
        assert torch.allclose(mixed, g[f"mixed_{name}_image"], rtol=0, atol=1e-4)
        assert torch.equal(mixed_masks[name], g[f"mixed_{name}_label"].long())

    pseudo_labels, confidence = pseudo_label(g["teacher_logits_target"], (24, 24))
    weights = BatchConfidence(0.968)(confidence, torch.zeros_like(half))
    assert torch.equal(pseudo_labels, g["pseudo_label"].long())
    assert weights[0, 0, 0].item() == pytest.approx(g["lambda_batch"].item())
    first, second = TwoTermConsistency().weights(weights, half, beta)
    assert torch.allclose(first, g["weight_a"], rtol=1e-6)
    assert torch.allclose(second, g["weight_b"], rtol=1e-5)

    logits, features = (
        {name: g[f"{kind}_{name}_mixed"].requires_grad_() for name in ("target", "source")}
        for kind in ("student_logits", "features")
    )
    log_probs = {name: upsample(z, (24, 24)).log_softmax(1) for name, z in logits.items()}
    loss_source = Labels(labels["source"]).loss(upsample(g["student_logits_source"], (24, 24)).log_softmax(1))
    soft = Labels(labels["source"], 1 - beta).loss(log_probs["source"])
    soft = soft + Labels(mixed_masks["source"], beta).loss(log_probs["source"])
    released, dropped = FirstTermConsistency().weights(weights, half, beta)
    assert dropped is None
    consistency = Labels(mixed_masks["target"], released, "all").loss(log_probs["target"])
    of_first_image = (beta * half[:1]).expand(2, -1, -1)
    paste = mmd(*(masked_mean(features[name], of_first_image) for name in ("target", "source")))
    whole = mmd(*(features[name].mean((2, 3)) for name in ("target", "source")))
    total = loss_source + soft + consistency + 0.005 * (paste + whole)
    expected = {
        "loss_source": loss_source,
        "loss_soft_segmentation": soft,
        "loss_consistency_as_released": consistency,
        "loss_consistency_dropped_term": Labels(pseudo_labels, second, "all").loss(log_probs["target"]),
        "loss_mmd_paste": paste,
        "loss_mmd_global": whole,
        "loss_total_as_released": total,
    }
    for name, value in expected.items():
        assert value.item() == pytest.approx(g[name].item(), rel=1e-5), name
    total.backward()
    for name in ("target", "source"):
        assert torch.allclose(logits[name].grad, g[f"grad_student_logits_{name}_mixed"], rtol=0, atol=1e-7)
        assert torch.allclose(features[name].grad, g[f"grad_features_{name}_mixed"], rtol=1e-4, atol=1e-8)
