"""Losses taken back view by view: the same gradients, and the activations of fewer views at a time."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_uda.__main__ import main
from tests.fixtures.choices import few_of
from tests.fixtures.processes import run_ranks
from tests.fixtures.stages import write_config

VIEWS = {"DACS": (2, 1), "DSP": (3, 2), "EHTDI": (4, 2), "T2SDA": (3, 1)}
"""Views whose activations a step holds at most, without the option and with it."""


class Held(Callback):
    """Counts the views whose first layer's activations are kept for a backward pass."""

    most = 0

    def on_train_start(self, trainer, pl_module):
        Held.most = 0
        self.now = 0
        pl_module.student.backbone[0].register_forward_hook(self.enter)

    def enter(self, layer, arguments, output):
        if not output.requires_grad:
            return
        self.now += 1
        Held.most = max(Held.most, self.now)
        output.register_hook(self.leave)

    def leave(self, gradient):
        self.now -= 1


def weights(folder):
    (path,) = folder.rglob("step=4.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def options_of(kind):
    return {
        "plain": [],
        "accumulated and clipped": [
            *["--trainer.accumulate_grad_batches", "2", "--trainer.gradient_clip_val", "0.1"],
            *["--trainer.val_check_interval", "8"],
        ],
        "bf16": ["--trainer.precision", "bf16-mixed"],
    }[kind]


def assert_alike(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("method", "kind"),
    few_of(
        [*((method, "plain") for method in VIEWS), ("DACS", "accumulated and clipped"), ("DSP", "bf16")],
        ("DACS", "accumulated and clipped"),
        ("DSP", "bf16"),
    ),
)
def test_weights_are_those_of_one_backward_pass(method, kind, tmp_path):
    for per_view in ("false", "true"):
        folder = tmp_path / per_view
        folder.mkdir()
        options = [
            "--model.backward_per_view",
            per_view,
            "--trainer.callbacks+=tests.methods.test_backward_per_view.Held",
        ]
        if method == "T2SDA":
            options += ["--model.feature_distance", "null"]
        main(["fit", "--config", write_config(folder, method), *options_of(kind), *options])
        assert Held.most == VIEWS[method][per_view == "true"]
    assert_alike(weights(tmp_path / "false"), weights(tmp_path / "true"))


@pytest.mark.slow
def test_two_processes_take_losses_back_too(tmp_path):
    for per_view in ("false", "true"):
        folder = tmp_path / per_view
        folder.mkdir()
        options = ["--model.backward_per_view", per_view, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
        ended = run_ranks(2, main, ["fit", "--config", write_config(folder, "T2SDA"), *options])
        assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr[-3000:]
    assert_alike(weights(tmp_path / "false"), weights(tmp_path / "true"))
