"""Every method goes through all stages by the command line: fit, validate, test, predict, and fit again to resume."""

import csv
import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lightning_uda.__main__ import main
from lightning_uda.files import locked
from lightning_uda.metrics import iou_per_class, mean_iou, read_confusion
from tests.fixtures.choices import few_of
from tests.fixtures.processes import run_ranks
from tests.fixtures.stages import (
    ALIKE_ON_TWO,
    DIGEST,
    FROZEN,
    LIKE_ONE,
    METHODS,
    MIXED,
    ON_TWO,
    digest_of,
    go_on,
    run_all_on_two,
    run_stages,
    steps_of,
    write_config,
)
from tests.test_checkpoints import error_of
from tests.test_ranks import distance


def values(run, name):
    """What a run logged under a name, in its order."""
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def weights(run, step):
    (path,) = run.glob(f"checkpoints/step={step}.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def check(runs, method, ranks=1):
    steps = steps_of(method, ranks)
    with (runs["fit"] / "metrics.csv").open() as file:
        losses = [name for name in next(csv.reader(file)) if name.startswith("train/loss")]
    trained = [value for name in losses for value in values(runs["fit"], name)]
    assert len(trained) >= steps
    assert all(math.isfinite(loss) for loss in trained)
    whole, resumed = weights(runs["fit"], steps), weights(runs["resume"], steps)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    if "validate" in runs:
        assert values(runs["validate"], "val/miou") == pytest.approx(values(runs["fit"], "val/miou")[-1:])
    if "test" in runs:
        for scope in ("", "_within_1px_of_borders", "_beyond_1px_of_borders"):
            (score,) = values(runs["test"], f"test/miou{scope}")
            assert 0 < score <= 100
    if "predict" in runs:
        predicted = sorted((runs["predict"] / "predictions/id").glob("*.png"))
        assert [path.stem for path in predicted] == [f"tiny_2_{i}" for i in range(4)]
        assert all(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (24, 32) for path in predicted)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_through_all_stages(method, tmp_path):
    check(run_stages(tmp_path, method, num_workers=1 if method in ("DSP", "SelfTraining") else 0), method)


@pytest.mark.parametrize("method", few_of(METHODS, *ALIKE_ON_TWO))
def test_in_mixed_precision_too(method, tmp_path):
    check(run_stages(tmp_path, method, *MIXED, stages=("fit", "resume")), method)


def test_clipping_goes_with_a_fused_optimiser_in_mixed_precision(tmp_path):
    options = [*MIXED, "--trainer.gradient_clip_val", "1"]
    options += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.fused", "true"]
    check(run_stages(tmp_path, "DACS", *options, stages=("fit", "resume")), "DACS")


def test_scores_near_borders_stand_in_all_that_a_run_and_its_report_show(tmp_path, capsys):
    """Counted by fit, validate and test; their checkpoint evaluates without them too, and `check` does the reverse."""
    runs = run_stages(tmp_path, "DACS", "--model.scoring.border", "1", stages=("fit", "validate", "test"))
    scopes = ("within_1px_of_borders", "beyond_1px_of_borders")
    for stage, run in runs.items():
        kind = "test" if stage == "test" else "val"
        with (run / "iou.csv").open() as file:
            *_, row = csv.DictReader(file)
        matrices = [read_confusion(run / f"confusions/{kind}_step_000004_{scope}.csv")[0] for scope in scopes]
        assert torch.equal(sum(matrices), read_confusion(run / f"confusions/{kind}_step_000004.csv")[0])
        for scope, matrix in zip(scopes, matrices, strict=True):
            miou = 100 * float(mean_iou(iou_per_class(matrix)))
            assert float(row[f"miou_{scope}"]) == pytest.approx(miou, abs=1e-4)
            assert float(row[f"iou_Pole_{scope}"]) == pytest.approx(100 * float(iou_per_class(matrix)[2]), abs=1e-4)
            assert values(run, f"{kind}/miou_{scope}")[-1] == pytest.approx(miou, abs=1e-4)
    assert values(runs["fit"], f"val/miou_{scopes[0]}")[-1:] == values(runs["validate"], f"val/miou_{scopes[0]}")

    capsys.readouterr()
    main(["report", str(runs["fit"]), "--output", str(tmp_path / "report.html")])
    labels = ("mIoU within 1 px of borders", "mIoU beyond 1 px of borders")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(labels)]
    assert [line.split()[-1] for line in shown] == [
        f"{values(runs['fit'], f'val/miou_{scope}')[-1]:.1f}" for scope in scopes
    ]
    assert all(label in (tmp_path / "report.html").read_text() for label in labels)

    checkpoint = str(runs["fit"] / "checkpoints/step=4.ckpt")
    main(["validate", "--config", str(tmp_path / "DACS.yaml"), "--ckpt_path", checkpoint])
    plain = tmp_path / "DACS/version_3"
    assert [path.name for path in (plain / "confusions").iterdir()] == ["val_step_000004.csv"]
    assert values(plain, "val/miou") == values(runs["validate"], "val/miou")


def made_once(tmp_path_factory, name, make):
    """A folder that one of the processes that run tests makes, for all of them."""
    top = tmp_path_factory.getbasetemp()
    folder = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / name
    with locked(folder.with_name(f"{name}.lock")):
        if not folder.exists():
            folder.mkdir()
            make(folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folder of runs of one process: DSP, and self-training with as many images in a step as two processes have."""

    def make(folder):
        for method, options in {"DSP": FROZEN, "SelfTraining": [*LIKE_ONE, "--data.batch_size", "4"]}.items():
            main(["fit", "--config", write_config(folder, method), *options, *DIGEST])

    return made_once(tmp_path_factory, "one", make)


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """Folder of runs of two processes, of all methods."""

    def make(folder):
        ended = run_ranks(2, run_all_on_two, folder)
        assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr[-5000:]

    return made_once(tmp_path_factory, "two", make)


def digests(run, ranks):
    return [json.loads((run / f"{rank}.json").read_text()) for rank in range(ranks)]


def test_on_two_ranks_too(two):
    for method, runs in json.loads((two / "runs.json").read_text()).items():
        check({stage: Path(run) for stage, run in runs.items()}, method, ranks=2)
        for stage in ("fit", "resume"):
            first, second = digests(Path(runs[stage]), 2)
            assert first["last"] == second["last"], f"{method}: the weights of both processes differ"


def test_two_ranks_count_and_label_what_one_process_does(one, two):
    counted = sorted(path.name for path in (one / "cache").glob("*.npz"))
    assert [name.split("-")[1] for name in counted] == ["classes", "positions"]
    assert sorted(path.name for path in (two / "cache").glob("*.npz")) == counted
    for name in counted:
        arrays = [np.load(folder / "cache" / name) for folder in (one, two)]
        assert sorted(arrays[0]) == sorted(arrays[1])
        for key in arrays[0]:
            assert arrays[0][key].any()
            np.testing.assert_array_equal(arrays[0][key], arrays[1][key], strict=True)
    of_run = {"DSP": ["class_statistics.csv", "class_statistics.png"], "SelfTraining": ["rounds/prior.png"]}
    of_run["SelfTraining"] += [
        f"rounds/round_1/{name}" for name in ("round.json", *(f"tiny_1_{i}.png" for i in range(4)))
    ]
    for method, names in of_run.items():
        for name in names:
            alone, shared = (folder / method / "version_0" / name for folder in (one, two))
            assert alone.read_bytes() == shared.read_bytes(), name


def test_each_file_is_written_by_one_rank_and_what_is_counted_once(two):
    noted = [two.with_name(f"two.{rank}").read_text().splitlines() for rank in range(2)]
    written = [Counter(name for name in names if re.search(r"(^cache/|/version_\d/).*\.\w+$", name)) for names in noted]
    assert written[0].keys() & written[1].keys() == set()
    once = re.compile(r"cache/.*|.*/(class_statistics|prior|round_\d/[^/]*|predictions/.*)\.(csv|png|json)")
    times = {name: number for name, number in (written[0] + written[1]).items() if once.fullmatch(name)}
    assert len(times) > 40
    assert set(times.values()) == {1}


@pytest.mark.parametrize("step", few_of([1, 3], 3))
def test_self_training_goes_on_within_a_round_on_more_or_fewer_processes(step, one, two):
    """What it goes on with is the checkpoint's, and what comes of it is what came of one process, but for rounding."""
    whole = one / "SelfTraining/version_0"
    go_on(two, f"from_two/{step}", two / f"SelfTraining/version_0/checkpoints/step={step}.ckpt", 1)
    for begun, went_on, ranks in (
        (two / "SelfTraining/version_0", two / f"from_two/{step}/version_0", 1),
        (whole, two / f"from_one/{step}/version_0", 2),
    ):
        state = weights(begun, step)
        number = 1 if step < 2 else 2
        record = json.loads((begun / f"rounds/round_{number}/round.json").read_text())
        records = digests(went_on, ranks)
        for found in records:
            assert (found["step"], found["first"]) == (step, digest_of(state))
            assert found["thresholds"] == [math.inf if value is None else value for value in record["thresholds"]]
            assert found["last"] == records[0]["last"]
        for path in (begun / f"rounds/round_{number}").iterdir():
            assert path.read_bytes() == (went_on / f"rounds/round_{number}" / path.name).read_bytes()
        batches = [[sample for rank in records for sample in rank["batches"][i]["union"]] for i in range(4 - step)]
        assert batches == [batch["union"] for batch in digests(whole, 1)[0]["batches"][step:]]
        expected, last = weights(whole, 4), weights(went_on, 4)
        assert distance(last, expected) < 1e-6 < 1e-4 < distance(last, state)
        assert not list(went_on.glob("checkpoints/step=5.ckpt"))


def test_self_training_goes_on_with_as_many_images_in_a_step_only(one, tmp_path):
    checkpoint = one / "SelfTraining/version_0/checkpoints/step=3.ckpt"
    command = ["fit", "--config", write_config(tmp_path, "SelfTraining"), *LIKE_ONE, "--ckpt_path", str(checkpoint)]
    message = error_of(*command)
    assert "Its steps had 4 images, those of this run have 2: choose data.batch_size and trainer.accum" in message
    assert not (tmp_path / "SelfTraining").exists()
    main([*command, "--trainer.accumulate_grad_batches", "2"])
    assert (tmp_path / "SelfTraining/version_0/checkpoints/step=4.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_leave_two_processes_alike(method, tmp_path):
    options = [*ON_TWO, *FROZEN, *DIGEST]
    if method == "SelfTraining":
        options += ["--model.rounds.epochs_per_round", "5"]  # of two steps
    else:
        options += ["--trainer.max_steps", "20", "--trainer.val_check_interval", "20"]
    ended = run_ranks(2, main, ["fit", "--config", write_config(tmp_path, method), *options])
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr[-5000:]
    run = tmp_path / method / "version_0"
    with (run / "metrics.csv").open() as file:
        assert max(int(row["step"]) for row in csv.DictReader(file)) >= 19
    assert len({found["last"] for found in digests(run, 2)}) == 1
