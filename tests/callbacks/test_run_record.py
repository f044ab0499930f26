import subprocess
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_uda.callbacks import ImagePanels, IoUTable, RunRecord
from lightning_uda.callbacks.run_record import git_state, versions_of_packages
from lightning_uda.label_spaces import CAMVID, get_label_space
from lightning_uda.methods import SourceOnly
from lightning_uda.report import load_runs
from tests.fixtures.tiny import tiny_data, tiny_network


def git(folder, *words):
    person = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *person, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_git_state_is_commit_and_number_of_changed_files(tmp_path):
    (tmp_path / "plain").mkdir()
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    assert git_state(repository) == ""  # without a commit
    for name in "ab":
        (repository / name).write_text("1")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "first")
    commit = git(repository, "rev-parse", "HEAD")[:12]
    assert git_state(repository) == commit
    (repository / "new").write_text("1")
    (repository / "a").write_text("2")
    assert git_state(repository) == f"{commit}, 1 file changed"
    (repository / "b").unlink()
    assert git_state(repository) == f"{commit}, 2 files changed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A short training with all that its report shows."""
    folder = tmp_path_factory.mktemp("runs")
    trainer = Trainer(
        accelerator="cpu", max_steps=2, val_check_interval=1, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        callbacks=[ImagePanels(num_images=1, num_extremes=5), IoUTable(False), RunRecord()], log_every_n_steps=1,
        logger=CSVLogger(folder, name="tiny"), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    module = SourceOnly(network=tiny_network(), label_space="camvid")
    trainer.fit(module, datamodule=tiny_data())
    version = folder / "tiny/version_0"
    RunRecord().on_fit_start(trainer, module)
    assert not (version / "run.1.yaml").exists()  # nothing has changed
    trainer.datamodule.val.length = 8
    RunRecord().on_fit_start(trainer, module)
    return version


def test_the_record_says_what_was_run(folder):
    record = yaml.safe_load((folder / "run.1.yaml").read_text())
    assert record["data"] == {"source": 10, "target": 7, "val": 3}
    assert record["versions"] == versions_of_packages()
    assert {"python", "torch", "lightning-uda"} <= set(record["versions"])
    assert yaml.safe_load((folder / "run.yaml").read_text())["data"]["val"] == 8


def test_a_damaged_record_is_kept_beside_the_new_one(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff")
    trainer = SimpleNamespace(log_dir=str(tmp_path), loggers=[1], is_global_zero=True)
    RunRecord().on_fit_start(trainer, None)
    assert (tmp_path / "run.1.yaml").read_bytes() == b"\xff"
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["versions"] == versions_of_packages()


def test_the_classes_are_kept_with_their_colours(folder):
    kept = get_label_space(str(folder / "label_space.yaml"))
    assert (kept.name, kept.classes, kept.palette, kept.subsets) == ("camvid", CAMVID.classes, CAMVID.palette, {})
    (run,) = load_runs([folder])
    assert run.label_space == kept
    assert run.record["data"]["val"] == 8
