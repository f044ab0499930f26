"""What a run on folders of one's own leaves behind, with the schedules of its configs."""

import json

import numpy as np
import pytest

from lightning_uda.__main__ import main
from lightning_uda.label_spaces import CAMVID
from tests.fixtures.media import picture, save

TINY = [
    *("--data.label_space", "camvid", "--data.num_workers", "0", "--model.network", "tests.fixtures.tiny.TinyNetwork"),
    *("--data.source_transform.crop", "[16, 16]", "--data.target_transform.crop", "[16, 16]"),
    *(
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ),
]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Options for three folders with four images each, of which the target has no labels."""
    monkeypatch.chdir(tmp_path)
    options = []
    for number, name in enumerate(("source", "target", "val")):
        for i in range(4):
            save(tmp_path / name / f"images/{i}.png", picture(4 * number + i, 24, 32))
            if name != "target":
                labels = np.random.default_rng(i).integers(0, 11, (24, 32), np.uint8)
                save(tmp_path / name / f"labels/{i}.png", labels[..., None])
        (tmp_path / name / "classes.json").write_text(json.dumps(dict(enumerate(CAMVID.classes))))
        options += [f"--data.{name}.root", name]
    return [*options, *TINY]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("val", [True, False])
def test_a_run_keeps_best_and_last_and_draws_its_first_steps(folders, val, tmp_path):
    options = folders if val else [word for word in folders if word not in ("--data.val.root", "val")]
    options += [] if val else ["--data.val", "null"]
    steps = ["--trainer.max_steps", "2000", "--data.check", "false"]
    main(["fit", "--config", "folders/source_only", *options, *steps])
    run = tmp_path / "runs/folders/source_only/version_0"
    kept = names(run / "checkpoints")
    assert [name for name in kept if name.startswith("last")] == ["last.ckpt", "last.previous.ckpt"]
    best = [name for name in kept if name.startswith("best")]
    assert len(best) == val
    assert len(kept) == 2 + val
    assert {"step_000010", "step_000100", "step_000300", "step_001000"} <= set(names(run / "panels"))
    rounds = ["--model.rounds.num_rounds", "2", "--model.rounds.mining", "null"]
    main(["fit", "--config", "folders/cbst", *options, *rounds, "--data.batch_size", "1"])
    run = tmp_path / "runs/folders/cbst/version_0"
    kept = {name.partition("_")[0] for name in names(run / "checkpoints")}
    assert kept == {"last.ckpt", "last.previous.ckpt", *(["best"] if val else [])}
    assert "step_000010" in names(run / "panels")
