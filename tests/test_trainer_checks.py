"""What the trainer is asked for and can't do is refused before a run begins."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    Timer,
)

from lightning_uda.methods import SourceOnly
from lightning_uda.methods.base import _usable
from lightning_uda.trainer_checks import (
    require_callbacks,
    require_monitored,
    require_trainer_options,
    warn_of_slow_bfloat16,
)
from tests.fixtures.tiny import tiny_network


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": None}, "trainer.max_steps: found null"),
        ({"accelerator": None}, "trainer.accelerator: found null"),
        ({"limit_train_batches": 0}, "trainer.limit_train_batches: found 0, with which nothing is trained"),
        ({"max_epochs": 0}, "trainer.max_epochs: found 0, with which nothing is trained"),
        ({"max_time": "00:00:00:00"}, "trainer.max_time: found 00:00:00:00; expected a time above zero"),
        ({"max_time": {"days": -1}}, "trainer.max_time: found .*; expected a time above zero"),
        ({"strategy": "ddp_spawn"}, "trainer.strategy: found 'ddp_spawn', .* such as 'ddp'"),
        ({"strategy": "ddp_fork_find_unused_parameters_false"}, "trainer.strategy: found 'ddp_fork_find"),
    ],
)
def test_options_that_train_nothing_or_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        require_trainer_options(options, trains=True)


def test_options_of_a_run_that_trains_are_accepted():
    options = {"max_epochs": -1, "max_time": "00:00:00:01", "limit_train_batches": 1.0, "callbacks": None}
    require_trainer_options(options | {"strategy": "ddp", "devices": 2}, trains=True)
    require_trainer_options({"limit_train_batches": 0}, trains=False)


@pytest.mark.parametrize("kind", [LearningRateFinder, BatchSizeFinder, Timer, lambda: BackboneFinetuning()])
def test_callbacks_that_expect_another_module_are_refused(kind):
    with pytest.raises(ValueError, match=r"trainer\.callbacks: found .*, which can't be used here; .*"):
        require_callbacks([kind()])


@pytest.mark.parametrize("name", ["{step", "best_{val/miou:.1f", "{val/miou:.1q}", "step}"])
def test_names_of_checkpoints_that_cannot_be_filled_in_are_refused(name):
    with pytest.raises(
        ValueError, match=r"ModelCheckpoint\.filename: found '.*', which can't be filled in \(.*\); expected"
    ):
        require_callbacks([ModelCheckpoint(filename=name)])
    for good in ("{step}", "step{step}_{val/miou:.1f}", "last", None):
        for named in (True, False):
            require_callbacks([ModelCheckpoint(filename=good, auto_insert_metric_name=named)])


def test_callbacks_whose_states_have_one_name_are_refused():
    require_callbacks([ModelCheckpoint(), ModelCheckpoint(every_n_train_steps=5), ModelCheckpoint(monitor="val/miou")])
    message = r"found two ModelCheckpoint whose states .* expected one, or settings that differ \(of ModelCheckpoint"
    with pytest.raises(ValueError, match=message):
        require_callbacks([ModelCheckpoint(filename="last"), ModelCheckpoint(filename="resume")])


def test_names_of_checkpoints_may_have_what_is_logged():
    module = SourceOnly(network=tiny_network(), label_space="camvid")
    for name in ("{step}_{val/miou:.1f}", "{epoch}_{val/iou_Road}_{train/loss}", "{lr-AdamW:.2e}", "last", None):
        require_monitored(module, [LearningRateMonitor(), ModelCheckpoint(filename=name)])
    with pytest.raises(ValueError, match=r"ModelCheckpoint\.filename: found 'val/loss', which nothing logs"):
        require_monitored(module, [ModelCheckpoint(filename="{step}_{val/loss}")])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.SparseAdam(p, lr=0.1), "SparseAdam: it can't make a step"),
        (lambda p: torch.optim.AdamW(p, lr=0.1, differentiable=True), "AdamW: it can't make a step"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=5), "SGD.momentum: found 5, expected a number from 0 to 1"),
    ],
)
def test_optimisers_that_cannot_train_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        _usable(make)


@pytest.mark.parametrize(
    ("precision", "capability", "warned"),
    [
        ("bf16-mixed", "AVX2", True),
        ("bf16-true", "AVX2", True),
        ("bf16-mixed", "AVX512", False),
        ("32-true", "AVX2", False),
    ],
)
def test_bfloat16_on_a_cpu_that_has_no_instructions_for_it_is_warned_of(
    precision, capability, warned, monkeypatch, caplog
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    warn_of_slow_bfloat16(Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False))
    found = [record.getMessage() for record in caplog.records if record.name == "lightning_uda.trainer_checks"]
    assert [f"found {precision} on a CPU" in message for message in found] == [True] * warned
