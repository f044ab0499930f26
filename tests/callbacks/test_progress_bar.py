import io
import re

import lightning.pytorch as pl
import pytest
import rich
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from lightning_uda.callbacks.progress_bar import StepProgressBar


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        loss = self.weight.square().sum()
        self.log("train/loss_source", torch.tensor(0.25), prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.log("val/miou", 31.25, prog_bar=True)

    def predict_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0001)


def loader(length=5):
    return DataLoader(range(length), batch_size=1)


def trainer_of(bar, **kwargs):
    return pl.Trainer(**{
        "accelerator": "cpu", "logger": False, "callbacks": [bar], "enable_model_summary": False,
        "enable_checkpointing": False, "max_epochs": -1, "max_steps": 40, "val_check_interval": 20,
        "check_val_every_n_epoch": None, "log_every_n_steps": 4, "num_sanity_val_steps": 1, **kwargs,
    })  # fmt: skip


@pytest.fixture
def plain(monkeypatch):
    return _console(monkeypatch, force_terminal=False)


@pytest.fixture
def terminal(monkeypatch):
    return _console(monkeypatch, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})


def _console(monkeypatch, **kwargs):
    console = Console(record=True, width=120, file=io.StringIO(), **kwargs)
    monkeypatch.setattr(rich, "_console", console)
    return console


def test_ten_plain_lines_where_there_is_no_terminal(plain):
    trainer_of(StepProgressBar()).fit(Module(), loader(100), loader())
    lines = plain.export_text().splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/40" for step in range(4, 41, 4)]
    line = r"step  4/40   10%  \d:\d\d:\d\d  \d:\d\d:\d\d left  [\d.]+ (steps/s|s/step)  loss source 0\.250"
    assert re.fullmatch(line, lines[0]), lines[0]
    assert "miou" not in lines[4]
    assert lines[5].endswith("loss source 0.250  miou 31.250")
    assert "left" not in lines[-1]


def test_plain_lines_of_a_run_shorter_than_ten_steps(plain):
    trainer_of(StepProgressBar(), max_steps=3).fit(Module(), loader(), None)
    assert [line.split()[1] for line in plain.export_text().splitlines()] == ["1/3", "2/3", "3/3"]


def test_plain_lines_go_on_where_a_resumed_run_starts(plain, tmp_path):
    trainer = trainer_of(StepProgressBar(), max_steps=20)
    trainer.fit(Module(), loader(100))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    plain.export_text()
    trainer_of(StepProgressBar()).fit(Module(), loader(100), ckpt_path=tmp_path / "last.ckpt")
    lines = plain.export_text().splitlines()
    assert [line.split()[1] for line in lines] == ["24/40", "28/40", "32/40", "36/40", "40/40"]


@pytest.mark.parametrize(("verb", "word"), [("validate", "validating"), ("test", "testing"), ("predict", "predicting")])
def test_plain_lines_of_an_evaluation(plain, verb, word):
    getattr(trainer_of(StepProgressBar()), verb)(Module(), loader(20))
    lines = [line for line in plain.export_text().splitlines() if line.startswith(word)]
    assert [line.split()[1] for line in lines] == [f"{done}/20" for done in range(2, 21, 2)]
    assert "batches/s" in lines[0]


def test_bar_on_a_terminal_counts_steps_and_shows_metrics(terminal):
    trainer_of(StepProgressBar()).fit(Module(), loader(100), loader())
    last = terminal.export_text().splitlines()[-2:]
    assert re.search(r"training +━+ +40/40 +\d:\d\d:\d\d +[\d.]+ steps/s", last[0]), last
    assert last[1].split() == ["loss", "source", "0.250", "miou", "31.250"]


def test_bar_starts_where_a_resumed_run_starts(terminal):
    bar = StepProgressBar()
    bar._open_train(step=30, total=40)
    (task,) = bar._progress.tasks
    assert (task.completed, task.total) == (30, 40)
    bar._close()


def test_lines_printed_meanwhile_stand_above_the_bar(terminal):
    class Talker(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                trainer.progress_bar_callback.print(f"evaluated at {trainer.global_step}")

    trainer_of(StepProgressBar(), callbacks=[StepProgressBar(), Talker()]).fit(Module(), loader(100), loader())
    stream = terminal.file.getvalue()
    for step in (20, 40):
        assert f"\x1b[2Kevaluated at {step}\n" in stream, "begins on an erased line"
    assert "training" in stream[stream.index("evaluated at 40") :], "the bar is drawn again below"


def test_metrics_are_fetched_at_logging_steps_only(terminal, monkeypatch):
    steps = []
    bar = StepProgressBar(refresh_per_second=1e6)
    read = bar._read_metrics

    def spy(trainer, force=False):
        steps.append(trainer.global_step)
        read(trainer, force)

    monkeypatch.setattr(bar, "_read_metrics", spy)
    trainer_of(bar, log_every_n_steps=10).fit(Module(), loader(100), None)
    assert steps == [10, 20, 30, 40]


def test_fetches_are_limited_in_time(terminal, monkeypatch):
    bar = StepProgressBar(refresh_per_second=1e-3)
    bar._open_train(step=0, total=10)
    reads = []

    class Trainer:
        @property
        def progress_bar_metrics(self):
            reads.append(1)
            return {"train/loss": 1.0}

    for _ in range(5):
        bar._read_metrics(Trainer())
    bar._close()
    assert len(reads) == 1


def test_disabled_bar_is_silent(plain):
    bar = StepProgressBar()
    bar.disable()
    trainer_of(bar).fit(Module(), loader(100), loader())
    bar.print("nothing")
    assert plain.export_text() == ""
    bar.enable()
    bar.print("something")
    assert plain.export_text() == "something\n"


def test_terminal_is_given_back_after_an_error(terminal, monkeypatch):
    monkeypatch.setattr(Module, "training_step", lambda *_: 1 / 0)
    bar = StepProgressBar()
    with pytest.raises(ZeroDivisionError):
        trainer_of(bar).fit(Module(), loader())
    assert bar._progress is None
    assert not terminal._live_stack


def test_refresh_rate_must_be_positive():
    with pytest.raises(ValueError, match="refresh_per_second 0"):
        StepProgressBar(0)


def test_what_happens_between_steps_has_a_bar_of_its_own(plain):
    bar = StepProgressBar()
    assert list(bar.follow(iter("abcd"), "labelling", 4)) == list("abcd")
    assert "labelling 4/4  100%" in plain.file.getvalue()
    assert "images/s" in plain.file.getvalue()


def test_that_bar_disappears_when_it_is_done(terminal):
    bar = StepProgressBar()
    items = bar.follow(range(2), "labelling", 2)
    next(items)
    assert [task.description for task in bar._progress.tasks] == ["labelling"]
    assert list(items) == [1]
    assert not bar._progress.tasks
    bar._close()
