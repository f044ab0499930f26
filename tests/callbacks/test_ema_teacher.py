import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_uda.callbacks.ema_teacher import EMATeacher
from lightning_uda.methods import DACS, SourceOnly
from tests.fixtures.tiny import tiny_data, tiny_network

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def linear(weight, bias):
    layer = nn.Linear(4, 3)
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    return layer


def test_updates_are_the_reference(golden):
    g = golden("dacs_ema_update")
    ema = EMATeacher(decay=g["alpha_max"].item())
    teacher = linear(g["teacher_weight_init"], g["teacher_bias_init"])
    for i, iteration in enumerate(g["iteration"].tolist()):
        ema.updates = iteration
        assert ema.alpha(iteration) == pytest.approx(g["alpha_used"][i].item(), abs=1e-12)
        ema.update(linear(g["student_weight"][i], g["student_bias"][i]), teacher)
        assert torch.allclose(teacher.weight, g["teacher_weight"][i], rtol=0, atol=1e-6)
        assert torch.allclose(teacher.bias, g["teacher_bias"][i], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("policy", "mean", "count"), [("own", 0.0, 0), ("copy", 4.0, 3), ("average", 1.0, 3)])
def test_buffer_policies(policy, mean, count):
    student, teacher = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    student.running_mean.fill_(4.0)
    student.num_batches_tracked.fill_(3)
    EMATeacher(decay=0.75, warmup=False, buffers=policy).update(student, teacher)
    assert teacher.running_mean.tolist() == [mean, mean]
    assert teacher.num_batches_tracked.item() == count


def test_without_warm_up_the_decay_holds_from_the_start():
    assert EMATeacher(decay=0.9, warmup=False).alpha(0) == 0.9
    assert [EMATeacher(decay=0.9).alpha(i) for i in (0, 1, 100)] == [0, 0.5, 0.9]


@pytest.mark.parametrize(("accumulate", "updates"), [(1, 6), (3, 6)])
def test_one_update_for_each_optimiser_step(accumulate, updates):
    ema = EMATeacher()
    trainer = Trainer(max_steps=6, accumulate_grad_batches=accumulate, callbacks=[ema], **QUIET)
    trainer.fit(DACS(network=tiny_network(), label_space="camvid"), datamodule=tiny_data(val=None))
    assert trainer.global_step == 6
    assert ema.updates == updates


def test_under_accumulation_the_teacher_follows_steps_not_batches():
    class Recorder(EMATeacher):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            self.history.append([p.clone() for p in pl_module.teacher.parameters()])

    ema = Recorder(decay=0.5)
    ema.history = []
    module = DACS(network=tiny_network(), label_space="camvid")
    ema.history.append([p.clone() for p in module.teacher.parameters()])
    Trainer(max_steps=2, accumulate_grad_batches=2, callbacks=[ema], **QUIET).fit(
        module, datamodule=tiny_data(val=None)
    )
    moved = [
        any(not torch.equal(a, b) for a, b in zip(*pair, strict=True))
        for pair in zip(ema.history, ema.history[1:], strict=False)
    ]
    assert moved == [False, True, False, True]


def test_the_method_brings_the_callback_and_the_trainer_may_replace_it():
    for given in ([], [EMATeacher(decay=0.5)]):
        trainer = Trainer(max_steps=1, callbacks=list(given), **QUIET)
        trainer.fit(DACS(network=tiny_network(), label_space="camvid"), datamodule=tiny_data(val=None))
        found = [c for c in trainer.callbacks if isinstance(c, EMATeacher)]
        assert len(found) == 1
        assert found[0].decay == (0.5 if given else 0.99)


def test_teacher_is_frozen_saved_and_shares_nothing_with_the_student():
    module = DACS(network=tiny_network(), label_space="camvid")
    pointers = [{t.data_ptr() for t in part.state_dict().values()} for part in (module.student, module.teacher)]
    assert pointers[0].isdisjoint(pointers[1])
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert {n.removeprefix("teacher.") for n in module.state_dict() if n.startswith("teacher.")} == set(
        module.student.state_dict()
    )
    Trainer(max_steps=2, **QUIET).fit(module, datamodule=tiny_data(val=None))
    assert all(p.grad is None for p in module.teacher.parameters())


def test_a_method_without_teacher_or_with_a_shared_one_is_refused():
    trainer = Trainer(max_steps=1, callbacks=[EMATeacher()], **QUIET)
    with pytest.raises(ValueError, match="needs a method with a student and a teacher, found SourceOnly"):
        trainer.fit(SourceOnly(tiny_network(), "camvid"), datamodule=tiny_data(val=None))
    module = DACS(network=tiny_network(), label_space="camvid")
    module.teacher = copy.copy(module.student)
    with pytest.raises(ValueError, match="share storage"):
        Trainer(max_steps=1, **QUIET).fit(module, datamodule=tiny_data(val=None))


def test_a_decay_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"decay: found 1\.5"):
        EMATeacher(decay=1.5)


class StudentHistory(Callback):
    """Keeps the student's parameters after every step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weights.append(flat(pl_module.student))


def flat(network):
    return torch.cat([p.detach().double().flatten() for p in network.parameters()])


class SaveAt(Callback):
    """Writes a checkpoint after some step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def train_in(precision, steps, ema, *callbacks, resume=None):
    module = DACS(
        network=tiny_network(), label_space="camvid", optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05)
    )
    trainer = Trainer(max_steps=steps, accelerator="cpu", precision=precision, callbacks=[ema, *callbacks], **QUIET)
    trainer.fit(module, datamodule=tiny_data(val=None), ckpt_path=resume)
    return module


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_16_bit_teacher_moves_as_a_float32_one_would(precision):
    kind = {"bf16-true": torch.bfloat16, "16-true": torch.float16}[precision]
    generator = torch.Generator().manual_seed(0)
    student, teacher = (nn.Linear(30, 40).to(kind).requires_grad_(False) for _ in range(2))
    expected = flat(teacher)
    start, ema = expected.clone(), EMATeacher(decay=0.999, warmup=False)
    for _ in range(2000):
        student.weight.add_(0.01 * torch.randn(student.weight.shape, generator=generator, dtype=torch.float32))
        ema.update(student, teacher)
        expected = 0.999 * expected + 0.001 * flat(student)
    assert (flat(teacher) != start).double().mean() > 0.95
    torch.testing.assert_close(flat(teacher), expected, rtol=torch.finfo(kind).eps / 2, atol=1e-5)


def test_training_in_bfloat16_moves_the_teacher():
    history = StudentHistory()
    ema = EMATeacher(decay=0.99, warmup=False)
    start = flat(tiny_network().bfloat16())
    module, expected = train_in("bf16-true", 60, ema, history), start
    assert next(module.teacher.parameters()).dtype == torch.bfloat16
    for weights in history.weights:
        expected = 0.99 * expected + 0.01 * weights
    torch.testing.assert_close(flat(module.teacher), expected, rtol=2**-8, atol=1e-5)
    far = (expected - start).abs() > 2**-7 * start.abs()
    assert far.double().mean() > 0.3
    assert (flat(module.teacher) != start)[far].all()


def test_a_run_in_bfloat16_is_resumed_exactly(tmp_path):
    path = tmp_path / "last.ckpt"
    straight = train_in("bf16-true", 8, whole := EMATeacher(decay=0.99), SaveAt(4, path))
    resumed = train_in("bf16-true", 8, again := EMATeacher(decay=0.99), resume=path)
    assert torch.equal(flat(resumed.teacher), flat(straight.teacher))
    assert again.state_dict()["updates"] == 8
    found, expected = again.state_dict()["copies"], whole.state_dict()["copies"]
    assert found.keys() == expected.keys() == {name for name, _ in straight.teacher.named_parameters()}
    assert all(copy.dtype == torch.float32 and torch.equal(copy, expected[name]) for name, copy in found.items())


def test_float32_training_keeps_no_copies():
    train_in("32-true", 2, ema := EMATeacher())
    assert ema.state_dict() == {"updates": 2, "copies": {}}


def test_averaged_16_bit_buffers_keep_what_forward_passes_changed():
    student, teacher = nn.BatchNorm2d(2).bfloat16(), nn.BatchNorm2d(2).bfloat16()
    ema = EMATeacher(decay=0.999, warmup=False, buffers="average")
    student.running_mean.fill_(1.0)
    ema.update(student, teacher)
    assert teacher.running_mean.tolist() == pytest.approx([0.001] * 2, rel=2**-8)
    teacher.running_mean.add_(2.0)
    ema.update(student, teacher)
    expected = 0.999 * (0.001 + 2.0) + 0.001
    assert ema.state_dict()["copies"]["running_mean"].tolist() == pytest.approx([expected] * 2, rel=2**-8)
