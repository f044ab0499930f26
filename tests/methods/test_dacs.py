import pytest
import torch
from lightning.pytorch import Trainer

from lightning_uda.methods import DACS
from lightning_uda.mixing import BoxMask, paste_mask_of
from lightning_uda.networks.base import Classifier, InputNormalization, Outputs, SegmentationNetwork
from lightning_uda.optim import Constant
from lightning_uda.pseudo_labels import BatchConfidence, UniformWeights
from tests.fixtures.tiny import tiny_data, tiny_network

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Replay(SegmentationNetwork):
    """Answers with given logits, in order, and keeps what it was shown."""

    def __init__(self, *answers):
        super().__init__(19, InputNormalization((0,) * 3, (1,) * 3), (6,), (8,), "train")
        self.answers, self.shown = list(answers), []

    def forward(self, image):
        self.shown.append(image)
        return self.answers[len(self.shown) - 1]

    def outputs(self, image):
        return Outputs((Classifier(self(image)),), ())

    def parameter_groups(self):
        return []


def test_training_step_is_the_reference(golden):
    g = golden("dacs_step")
    chosen = torch.zeros(2, 256, dtype=torch.bool)
    for image in range(2):
        chosen[image, g[f"chosen_classes_{image}"]] = True
    logits = [g[f"student_logits_{part}"].requires_grad_() for part in ("source", "mixed")]
    module = DACS(
        network=Replay(),
        label_space="cityscapes",
        augmentation=None,
        paste_mask=lambda mask, _: paste_mask_of(mask, chosen),
    )
    module.student, module.teacher = Replay(*logits), Replay(g["teacher_logits_target"])
    module.log_step = lambda values: logged.update(values)
    logged = {}

    source = {"image": g["source_image"], "mask": g["source_label"]}
    loss = module.training_step({"source": source, "target": {"image": g["target_image"]}}, 0)
    loss.backward()

    mixed = module.last_views["mixed"]
    (labels,) = mixed.labels
    assert torch.allclose(mixed.image, g["mixed_image"], rtol=0, atol=1e-4)
    assert torch.equal(labels.mask.long(), g["mixed_target"])
    assert torch.allclose(labels.weights, g["pixel_weight"], rtol=1e-5)
    unpasted = g["pixel_weight"][~mixed.opacity]
    assert logged["lambda"]().item() == pytest.approx(unpasted.mean().item(), rel=1e-5)
    for name in ("loss_source", "loss_mixed"):
        assert logged[name].item() == pytest.approx(g[name].item(), rel=1e-5)
    assert loss.item() == pytest.approx(g["loss_total"].item(), rel=1e-5)
    assert logged["loss"].item() == loss.item()
    for part, tensor in zip(("source", "mixed"), logits, strict=True):
        assert torch.allclose(tensor.grad, g[f"grad_student_logits_{part}"], rtol=0, atol=1e-7)
    assert torch.equal(module.student.shown[0], g["source_image"])
    assert torch.equal(module.student.shown[1], mixed.image)
    assert torch.equal(module.teacher.shown[0], g["target_image"])


def run(seed=0, steps=3, **kwargs):
    module = DACS(network=tiny_network(), label_space="camvid", schedule=Constant(), seed=seed, **kwargs)
    Trainer(max_steps=steps, **QUIET).fit(module, datamodule=tiny_data(val=None))
    return torch.cat([p.detach().flatten() for p in module.student.parameters()])


def test_the_seed_decides_the_run():
    assert torch.equal(run(), run())
    assert not torch.equal(run(), run(seed=1))


def test_parts_and_scope_change_the_run():
    runs = [
        run(),
        run(pixel_weighting=UniformWeights()),
        run(pixel_weighting=BatchConfidence(0.968, "whole_image")),
        run(augmentation=None),
        run(paste_mask=BoxMask()),
    ]
    assert len({tuple(weights.tolist()) for weights in runs}) == len(runs)


def test_both_networks_stay_in_train_mode_around_validation():
    class Modes(DACS):
        def training_step(self, batch, batch_idx):
            modes.append((self.student.training, self.teacher.training))
            return super().training_step(batch, batch_idx)

    modes = []
    trainer = Trainer(max_steps=4, val_check_interval=2, check_val_every_n_epoch=None, **QUIET)
    trainer.fit(Modes(network=tiny_network(), label_space="camvid"), datamodule=tiny_data())
    assert modes == [(True, True)] * 4


def test_teacher_can_be_the_evaluated_network():
    module = DACS(network=tiny_network(), label_space="camvid", evaluate="teacher")
    assert module.evaluated_network() is module.teacher
    default = DACS(network=tiny_network(), label_space="camvid")
    assert default.evaluated_network() is default.student


def test_a_run_on_a_single_domain_is_refused_before_training():
    with pytest.raises(RuntimeError, match=r"data\.target isn't set, but this run needs it"):
        Trainer(max_steps=1, **QUIET).fit(
            DACS(network=tiny_network(), label_space="camvid"), datamodule=tiny_data(target=None)
        )
