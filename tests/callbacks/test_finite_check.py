from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from lightning_uda.__main__ import main
from lightning_uda.callbacks import FiniteCheck
from lightning_uda.callbacks.finite_check import not_finite
from lightning_uda.methods import DACS, SourceOnly
from tests.fixtures.processes import run_ranks
from tests.fixtures.stages import write_config
from tests.fixtures.tiny import tiny_data, tiny_network
from tests.methods.test_step_costs import Counted

ROOT = Path(__file__).parents[2]
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Poisoned(DACS):
    """DACS whose mixed loss, or the gradient of its source loss, is not finite at a batch, counted from 0."""

    def __init__(self, loss_at=None, gradient_at=None, value=torch.nan):
        super().__init__(network=tiny_network(), label_space="camvid")
        self.loss_at, self.gradient_at, self.value, self.batches = loss_at, gradient_at, value, 0

    def algorithm(self, step):
        super().algorithm(step)
        if self.batches == self.loss_at:
            step.losses["loss_mixed"] = step.losses["loss_mixed"] * self.value
        if self.batches == self.gradient_at:
            step.losses["loss_source"].register_hook(lambda gradient: gradient * self.value)
        self.batches += 1


def fit(module, *callbacks, steps=6, val=None, **settings):
    settings = {"max_steps": steps, "log_every_n_steps": 4, "enable_checkpointing": False, **QUIET, **settings}
    trainer = Trainer(callbacks=[FiniteCheck(), *callbacks], num_sanity_val_steps=0, **settings)
    trainer.fit(module, datamodule=tiny_data(val=val))
    return trainer


def test_the_first_bad_step_is_named_with_its_losses_and_images():
    data = tiny_data()
    names = {
        "source": [data.source.name(data._own_stream("source").index(i)) for i in (4, 5)],
        "target": [data.target.name(data._own_stream("target").index(i)) for i in (4, 5)],
    }
    with pytest.raises(FloatingPointError) as error:
        fit(module := Poisoned(loss_at=2))
    message = str(error.value)
    assert "its loss is not finite at step 3 of 6: train/loss_mixed is nan.\n" in message
    assert "; ".join(f"{stream}: {', '.join(images)}" for stream, images in names.items()) in message
    assert "--model.optimizer.lr" in message
    assert module.batches == 4, "losses are read at logging steps"


def test_infinity_is_found_too_and_a_step_of_several_batches_is_named():
    with pytest.raises(FloatingPointError, match=r"at step 2 of 6: train/loss_mixed is inf"):
        fit(Poisoned(loss_at=3, value=torch.inf), accumulate_grad_batches=2, log_every_n_steps=2)


def test_a_module_without_named_losses_is_checked():
    class Plain(SourceOnly):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.last_losses = {}
            return loss * (torch.nan if batch_idx == 1 else 1)

    module = Plain(network=tiny_network(), label_space="camvid")
    with pytest.raises(FloatingPointError, match=r"at step 2 of 2: train/loss is nan"):
        fit(module, steps=2)


def test_losses_are_read_now_and_then_where_nothing_is_logged():
    with pytest.raises(FloatingPointError, match="at step 3 of 300"):
        fit(module := Poisoned(loss_at=2), steps=300, log_every_n_steps=0)
    assert module.batches == 100


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("settings", [{}, {"gradient_clip_val": 1.0}])
def test_a_bad_gradient_is_named_by_its_step_losses_and_images(batch, settings):
    data = tiny_data()
    images = [data.source.name(data._own_stream("source").index(i)) for i in (2 * batch, 2 * batch + 1)]
    with pytest.raises(FloatingPointError) as error:
        fit(Poisoned(gradient_at=batch), **settings)
    message = str(error.value)
    assert (
        f"its gradients are not finite at step {batch + 1} of 6, though its losses are: train/loss_source is "
        in message
    )
    assert f"\nIts batch: source: {', '.join(images)}; target: " in message


class Sets(Callback):
    """Sets a weight, or its gradient, to infinity in every step."""

    def __init__(self, hook):
        setattr(self, hook, lambda trainer, pl_module, *args: self.fill(hook, pl_module.student.classifier.bias))

    def fill(self, hook, weight):
        (weight.data if hook == "on_train_batch_end" else weight.grad)[0] = torch.inf


def test_weights_that_are_not_finite_after_good_gradients_are_named():
    with pytest.raises(
        FloatingPointError, match=r"weights are not finite after step 1 of 1: student\.classifier\.bias, teacher"
    ):
        fit(Poisoned(), Sets("on_train_batch_end"), steps=1)


def test_a_gradient_that_is_clipped_by_value_is_no_fault():
    settings = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
    assert fit(Poisoned(), Sets("on_after_backward"), **settings).global_step == 6
    with pytest.raises(FloatingPointError, match="its gradients are not finite at step 1 of 6"):
        fit(Poisoned(), Sets("on_after_backward"))


class Saves(Callback):
    """Saves a checkpoint after each of the steps."""

    def __init__(self, path, steps):
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("poison", [{"loss_at": 2}, {"gradient_at": 2}])
def test_no_bad_checkpoint_takes_the_place_of_a_good_one(tmp_path, poison):
    path = tmp_path / "last.ckpt"
    with pytest.raises(FloatingPointError, match="step 3 of 6"):
        fit(Poisoned(**poison), Saves(path, (2, 3)))
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 2
    assert not not_finite(content["state_dict"])


def test_nothing_bad_is_validated(tmp_path):
    keeps = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}")
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None, "enable_checkpointing": True}
    with pytest.raises(FloatingPointError, match="at step 3"):
        fit(Poisoned(loss_at=2), keeps, val=tiny_data().val, log_every_n_steps=100, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["step=2.ckpt"]


def test_steps_that_amp_leaves_out_are_no_fault():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    scales = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            scales.append(scaler.get_scale())

    module = SourceOnly(network=tiny_network(), label_space="camvid")
    before = module.student.classifier.weight.detach().clone()
    trainer = fit(module, Watch(), steps=3, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert trainer.global_step == 3
    assert scales == [2.0**125, 2.0**124, 2.0**123], "gradients overflowed, and the scaler noticed"
    assert torch.equal(before, module.student.classifier.weight), "no step was made"


def test_gradients_that_are_finite_at_no_scale_are_a_fault():
    module = SourceOnly(network=tiny_network(), label_space="camvid")
    module.student.classifier.weight.register_hook(lambda gradient: gradient * torch.nan)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-8)  # as after 24 such steps
    message = r"no scale of the loss at which gradients are finite, by step 4 of 9: .*\nLower the learning rate"
    with pytest.raises(FloatingPointError, match=message):
        fit(module, steps=9, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def test_a_step_costs_a_norm_of_its_gradients_and_no_wait(monkeypatch):
    check, trainer = FiniteCheck(), Trainer(log_every_n_steps=4, enable_checkpointing=False, **QUIET)
    module = SourceOnly(network=tiny_network(), label_space="camvid").to("meta")
    for weight in module.parameters():
        weight.grad = torch.empty_like(weight)
    losses = {name: torch.ones((), device="meta", requires_grad=True) for name in ("loss_source", "loss_mixed")}
    module.last_losses = losses
    outputs = {"loss": torch.ones((), device="meta")}
    with Counted() as counted:  # of what would be waited for on a device without data, nothing works
        check.on_train_batch_start(trainer, module, None, 0)
        monkeypatch.setattr(Trainer, "global_step", 1)
        check.on_train_batch_end(trainer, module, outputs, None, 0)
    assert counted.calls == len(losses) + 4, (
        "a view for each loss, the kind of numbers, the norms together, stacked, their norm"
    )


def test_weights_are_named_that_are_not_finite():
    tensors = {
        "a": torch.ones(3),
        "b": torch.tensor([1.0, torch.inf]),
        "n": torch.tensor(3),
        "c": torch.tensor(torch.nan),
    }
    assert not_finite(tensors) == ["b", "c"]
    assert not_finite({"a": torch.ones(3), "h": torch.ones(3, dtype=torch.float16)}) == []
    assert not_finite({}) == []


def test_the_command_line_ends_with_a_message_and_no_checkpoint(tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", write_config(tmp_path, "DACS"), "--model.optimizer.lr", "1e30"])
    message = str(end.value.code)
    assert message.startswith("error: The run stopped, as ")
    assert "of 4: " in message
    kept = sorted(path.name for path in tmp_path.rglob("*.ckpt"))
    assert all(not not_finite(torch.load(path, weights_only=True)["state_dict"]) for path in tmp_path.rglob("*.ckpt"))
    assert "step=4.ckpt" not in kept


class PoisonedOnOneRank(Poisoned):
    """Poisoned on the second process alone."""

    def algorithm(self, step):
        self.loss_at = 2 if self.global_rank == 1 else None
        super().algorithm(step)


def fit_on_two_ranks():
    fit(PoisonedOnOneRank(), devices=2, strategy="ddp")


@pytest.mark.slow
def test_all_processes_stop_where_one_has_a_bad_loss():
    message = "Process 1: The run stopped, as its loss is not finite at step 3 of 6: train/loss_mixed is nan."
    for process in run_ranks(2, fit_on_two_ranks):
        assert process.returncode == 1
        assert f"FloatingPointError: {message}" in process.stderr.splitlines()
