import io
import re

import lightning.pytorch as pl
import pytest
import rich
import torch
from lightning.pytorch.callbacks.progress import rich_progress
from rich.console import Console
from torch.utils.data import DataLoader

from lightning_uda.callbacks import progress_bar
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
    console = Console(**{"record": True, "width": 120, "file": io.StringIO(), **kwargs})
    monkeypatch.setattr(rich, "_console", console)
    monkeypatch.setattr(rich_progress, "reconfigure", lambda **_: None)  # else Lightning makes another console
    return console


def printed(console):
    return [line for line in console.export_text().splitlines() if line.strip()]


def test_ten_plain_lines_where_there_is_no_terminal(plain):
    trainer_of(StepProgressBar()).fit(Module(), loader(100), loader())
    lines = printed(plain)
    assert [line.split()[1] for line in lines] == [f"{step}/40" for step in range(4, 41, 4)]
    line = r"training  4/40   10%  \d:\d\d:\d\d, \d:\d\d:\d\d left  loss source 0\.250"
    assert re.fullmatch(line, lines[0]), lines[0]
    assert "miou" not in lines[4]
    assert lines[5].endswith("miou 31.250  loss source 0.250")
    assert "left" not in lines[-1]


def test_plain_lines_of_a_run_shorter_than_ten_steps(plain):
    trainer_of(StepProgressBar(), max_steps=3).fit(Module(), loader(), None)
    assert [line.split()[1] for line in printed(plain)] == ["1/3", "2/3", "3/3"]


def test_plain_lines_go_on_where_a_resumed_run_starts(plain, tmp_path):
    trainer = trainer_of(StepProgressBar(), max_steps=20)
    trainer.fit(Module(), loader(100))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    plain.export_text()
    trainer_of(StepProgressBar()).fit(Module(), loader(100), ckpt_path=tmp_path / "last.ckpt")
    lines = printed(plain)
    assert [line.split()[1] for line in lines] == ["24/40", "28/40", "32/40", "36/40", "40/40"]


@pytest.mark.parametrize(("verb", "word"), [("validate", "Validation"), ("test", "Testing"), ("predict", "Predicting")])
def test_plain_lines_of_an_evaluation(plain, verb, word):
    getattr(trainer_of(StepProgressBar()), verb)(Module(), loader(20))
    lines = [line for line in printed(plain) if line.startswith(word)]
    assert [line.split()[1] for line in lines] == [f"{done}/20" for done in range(2, 21, 2)]


def test_bar_on_a_terminal_counts_steps_and_shows_metrics_in_one_line(terminal):
    trainer_of(StepProgressBar()).fit(Module(), loader(100), loader())
    (last,) = [line for line in printed(terminal) if "40/40" in line][-1:]
    assert re.search(r"training +━+ +40/40 +\d:\d\d:\d\d • 0:00:00 +miou: 31\.250  loss source: 0\.250", last), last


def test_steps_of_later_epochs_and_of_accumulated_batches_move_the_same_bar(plain):
    trainer = trainer_of(StepProgressBar(), max_steps=10, accumulate_grad_batches=2, val_check_interval=10)
    trainer.fit(Module(), loader(8), loader())  # four steps an epoch
    assert [line.split()[1] for line in printed(plain)] == [f"{step}/10" for step in range(1, 11)]


def test_bar_starts_where_a_resumed_run_starts(terminal, tmp_path):
    class Spy(StepProgressBar):
        def on_train_batch_start(self, *_):
            self.seen = getattr(self, "seen", (self.train_progress_bar.completed, self.train_progress_bar.total))

    trainer = trainer_of(StepProgressBar(), max_steps=30, num_sanity_val_steps=0)
    trainer.fit(Module(), loader(100))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    bar = Spy()
    trainer_of(bar, num_sanity_val_steps=0).fit(Module(), loader(100), ckpt_path=tmp_path / "last.ckpt")
    assert bar.seen == (30, 40)


@pytest.mark.parametrize("width", [80, 100])
def test_metrics_never_wrap(monkeypatch, width):
    terminal = _console(monkeypatch, force_terminal=True, color_system=None, _environ={"TERM": "xterm"}, width=width)

    class Talkative(Module):
        def training_step(self, batch, batch_idx):
            self.log_dict({f"train/loss_of_a_long_name_{i}": torch.tensor(1.0) for i in range(5)}, prog_bar=True)
            return super().training_step(batch, batch_idx)

    trainer_of(StepProgressBar()).fit(Talkative(), loader(100), loader())
    shown = printed(terminal)
    assert all("training" in line or "Validation" in line or "Sanity" in line for line in shown)
    assert "miou: 31.250" in shown[-1]


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
    fetched = []
    read = progress_bar._short_metrics

    def spy(trainer):
        fetched.append(trainer.global_step)
        return read(trainer)

    monkeypatch.setattr(progress_bar, "_short_metrics", spy)
    trainer_of(StepProgressBar(), log_every_n_steps=10).fit(Module(), loader(100), None)
    assert set(fetched) == {10, 20, 30, 40}


def test_disabled_bar_is_silent(plain):
    bar = StepProgressBar()
    bar.disable()
    trainer_of(bar).fit(Module(), loader(100), loader())
    assert list(bar.follow(iter("ab"), "labelling", 2)) == ["a", "b"]
    assert plain.export_text() == ""


def test_terminal_is_given_back_after_an_error(terminal, monkeypatch):
    monkeypatch.setattr(Module, "training_step", lambda *_: 1 / 0)
    bar = StepProgressBar()
    with pytest.raises(ZeroDivisionError):
        trainer_of(bar).fit(Module(), loader())
    assert not terminal._live_stack


class Labels(pl.Callback):
    """Works through four items before the first step."""

    def __init__(self, bar):
        self.bar = bar

    def on_train_start(self, trainer, pl_module):
        self.shown = []
        for item in self.bar.follow(iter("abcd"), "labelling", 4):
            self.shown.append((item, [task.description for task in self.bar.progress.tasks if task.visible]))
        self.after = [task.description for task in self.bar.progress.tasks if task.visible]


def test_what_happens_between_steps_has_lines_of_its_own(plain):
    bar = StepProgressBar()
    trainer_of(bar, max_steps=2, callbacks=[Labels(bar), bar]).fit(Module(), loader())
    lines = [line.split()[:2] for line in printed(plain)]
    assert lines == [*(["labelling", f"{done}/4"] for done in range(1, 5)), ["training", "1/2"], ["training", "2/2"]]


def test_what_happens_between_steps_has_a_bar_until_it_is_done(terminal):
    bar = StepProgressBar()
    labels = Labels(bar)
    trainer_of(bar, max_steps=2, callbacks=[bar, labels]).fit(Module(), loader())
    assert [item for item, _ in labels.shown] == list("abcd")
    assert all("labelling" in visible for _, visible in labels.shown)
    assert labels.after == ["training"]
