"""Grid files: rows x seeds, their runner and their tables."""

import csv
import io
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rich
import torch
import yaml
from rich.console import Console

import lightning_uda.cli  # noqa: F401  before tests put something else in the place of subprocesses
from lightning_uda.__main__ import main
from lightning_uda.commands import runner as module
from lightning_uda.commands.figures import FiguresFile
from lightning_uda.commands.grid_file import read_grid
from lightning_uda.commands.runner import STAMP, Runner, read_stamp
from lightning_uda.files import RECORD_FILE
from lightning_uda.metrics import MIOU_NOTE
from lightning_uda.tables import append_row, read_rows
from tests.fixtures import stages
from tests.fixtures.choices import few_of
from tests.fixtures.processes import ForkedCommand
from tests.report.test_report import CLASSES, write_evaluation

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs/grids").glob("*.yaml"))
AFTER_FIRST = "--model.init_from={run:first}"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def write_grid(path="grid.yaml", **changes):
    content = {
        "name": "tiny",
        "seeds": [0, 1],
        "config": "{row}.yaml",
        "run": "tiny/seed_{seed}/{row}",
        "rows": {"first": None, "second": {"title": "Second row", "options": [AFTER_FIRST]}},
    }
    Path(path).write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return Path(path)


MIOU = {("first", 0): 20.0, ("first", 1): 22.0, ("second", 0): 31.0, ("second", 1): 27.0}


class Trainings(list):
    """Commands of runs and what these do.

    `results`: what a run does by its name: fail (1), last seconds (a float), be stopped (an error). `scopes`: further
    scopes of the scores, and how much higher their mIoU is.
    """

    def __init__(self):
        super().__init__()
        self.results, self.scopes = {}, {}


@pytest.fixture
def trainings(monkeypatch):
    """Trainings as commands only: each leaves a run folder with the mIoU of its row and seed."""

    commands, lock = Trainings(), threading.Lock()

    class Process:
        def __init__(self, command, env, **streams):
            self.command, self.env, self.streams = command, env, streams

        def terminate(self):
            pass

        def wait(self, timeout=None):
            if timeout is not None:
                return 1
            options = dict(itertools.pairwise(self.command))
            name = options["--name"]
            with lock:
                commands.append(self.command[3:])
            result = commands.results.get(name, 0)
            if isinstance(result, float):
                time.sleep(result)
            elif isinstance(result, type):
                raise result
            folder = Path(options["--output"]) / name
            version = folder / f"version_{len(list(folder.glob('version_*')))}"
            version.mkdir(parents=True)
            if result == 1:
                return 1
            seed = next(int(word.split("=")[1]) for word in self.command if word.startswith("--seed_everything="))
            miou = MIOU.get((folder.name, seed), 10.0 + seed)
            for scope, gain in {None: 0, **commands.scopes}.items():
                write_evaluation(version, 2, [miou + gain] * len(CLASSES), scope=scope)
            append_row(version / "metrics.csv", {"step": 1, "train/loss_source": 0.5, "train/tail_classes": seed})
            return 0

    monkeypatch.setattr(module.subprocess, "Popen", Process)
    monkeypatch.setattr(Runner, "check", lambda self, points: None)
    return commands


def runs_of(commands):
    return [command[command.index("--name") + 1] for command in commands]


def table(path="runs/tiny/table.csv"):
    with Path(path).open() as file:
        return {(row["row"], row["metric"]): row for row in csv.DictReader(file)}


def test_rows_and_seeds_make_the_points_and_start_from_the_run_of_their_seed(trainings, capsys):
    write_grid()
    main(["grid", "grid.yaml", "--", "--trainer.max_steps", "1"])
    assert runs_of(trainings) == [f"tiny/seed_{seed}/{row}" for seed in (0, 1) for row in ("first", "second")]
    assert trainings[3] == [
        *["fit", "--config=second.yaml", "--seed_everything=1"],
        "--model.init_from=runs/tiny/seed_1/first/version_0",
        *["--trainer.max_steps", "1", "--output", "runs", "--name", "tiny/seed_1/second"],
    ]
    out = capsys.readouterr().out
    (line,) = (line.split() for line in out.splitlines() if line.strip().startswith("Second row"))
    assert line == "Second row 29.0 ± 2.8 +8.0 ± 4.2".split()  # 31 and 27; 11 and 5 above the first row
    assert " ".join(out.split()).count(MIOU_NOTE) == 1
    assert out.splitlines()[-2:] == ["runs/tiny/table.csv", "runs/tiny/report.html"]


@pytest.mark.parametrize(("encoding", "sign"), [("cp1252", "±"), ("ascii", "+-")])
def test_a_console_that_lacks_characters_gets_the_table(encoding, sign, trainings, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(rich, "_console", Console(file=stream, width=120))
    write_grid(metrics=["classes_below_1"], orders={"order": ["first", "second"]})
    main(["grid", "grid.yaml"])
    stream.seek(0)
    out = stream.read()
    assert f"Mean {sign} standard deviation over 2 runs" in out
    assert f"Mean {sign} standard deviation of the paired" in out
    assert "Cityscapes evaluator" not in out  # no mean IoU is shown


def test_the_table_holds_mean_deviation_and_the_paired_difference(trainings):
    write_grid(metrics=["miou", "train/tail_classes"])
    main(["grid", "grid.yaml", "--seeds", "0", "1"])
    row = table()["second", "miou"]
    assert (float(row["mean"]), row["control"], row["runs"], row["pairs"]) == (29.0, "first", "2", "2")
    assert float(row["deviation"]) == pytest.approx(np.std([31, 27], ddof=1), abs=1e-4)
    assert float(row["difference"]) == 8.0
    assert float(row["difference_deviation"]) == pytest.approx(np.std([11, 5], ddof=1), abs=1e-4)
    assert table()["first", "miou"]["difference"] == ""
    assert float(table()["second", "train/tail_classes"]["mean"]) == 0.5


def test_scores_of_further_scopes_are_metrics(trainings, capsys, monkeypatch):
    monkeypatch.setattr("lightning_uda.commands.figures._about", lambda _: ("2026-01-02", "abc", "CPU", "2.15"))
    trainings.scopes = {"within_3px_of_borders": -10.0, "beyond_3px_of_borders": 5.0}
    write_grid(metrics=["miou_within_3px_of_borders", "iou_Car_beyond_3px_of_borders"])
    main(["grid", "grid.yaml", "--figures", "figures.csv"])
    found = table()
    assert found["second", "miou"]["mean"] == "29.0"
    assert found["second", "miou_within_3px_of_borders"]["mean"] == "19.0"
    assert found["second", "miou_within_3px_of_borders"]["difference"] == "8.0"
    assert found["second", "iou_Car_beyond_3px_of_borders"]["mean"] == "34.0"
    assert [float(row["miou_within_3px_of_borders"]) for row in read_rows(Path("figures.csv"))] == [10, 21, 12, 17]
    (line,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("Second row"))
    assert line == "Second row 19.0 ± 2.8 +8.0 ± 4.2 34.0 ± 2.8 +8.0 ± 4.2".split()


def test_the_best_evaluation_is_a_metric_that_says_how_it_was_chosen(trainings, capsys):
    write_grid(rows={"first": None}, seeds=[0], metrics=["miou", "best_miou"])
    main(["grid", "grid.yaml"])
    write_evaluation(Path("runs/tiny/seed_0/first/version_0"), 1, [45.0] * len(CLASSES))
    write_evaluation(Path("runs/tiny/seed_0/first/version_0"), 3, [17.0] * len(CLASSES))
    capsys.readouterr()
    main(["grid", "grid.yaml"])
    out = " ".join(capsys.readouterr().out.split())
    assert "row mIoU best mIoU" in out
    assert "first 17.0 45.0" in out
    assert "Best: the evaluation is chosen with target labels." in out
    assert (table()["first", "miou"]["mean"], table()["first", "best_miou"]["mean"]) == ("17.0", "45.0")


def test_a_named_control_and_tables_of_some_rows(trainings, capsys):
    rows = {name: {"config": "first.yaml"} for name in ("first", "second", "third")}
    write_grid(rows=rows, control="second", tables={"All": list(rows), "Others": ["first", "third"]})
    main(["grid", "grid.yaml"])
    with Path("runs/tiny/table.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["metric"] == "miou"]
    assert [(row["table"], row["row"], row["control"]) for row in found] == [
        *[("All", "first", "second"), ("All", "second", ""), ("All", "third", "second")],
        *[("Others", "first", ""), ("Others", "third", "first")],
    ]
    assert "All" in capsys.readouterr().out


def test_a_dry_run_shows_the_points_and_their_commands(trainings, capsys):
    write_grid()
    main(["grid", "grid.yaml", "--seeds", "3", "--dry-run", "--output", "out"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["first, seed 3 (to do)", "second, seed 3 (to do)"]
    command = shlex.split(lines[1].split(": ", 1)[1])
    assert command[:2] == ["lightning-uda", "fit"]
    assert "--model.init_from=out/tiny/seed_3/first/version_?" in command
    assert trainings == []
    assert not Path("out").exists()


def test_a_stopped_grid_goes_on_by_the_same_command(trainings, capsys):
    write_grid()
    trainings.results["tiny/seed_0/second"] = KeyboardInterrupt
    with pytest.raises(SystemExit) as end:
        main(["grid", "grid.yaml"])
    assert end.value.code == 130
    assert "stopped in second, seed 0; the same command goes on with it" in capsys.readouterr().out
    assert runs_of(trainings) == ["tiny/seed_0/first", "tiny/seed_0/second"]
    trainings.clear()
    trainings.results.clear()
    main(["grid", "grid.yaml"])
    assert runs_of(trainings) == ["tiny/seed_0/second", "tiny/seed_1/first", "tiny/seed_1/second"]
    assert "tiny 1/4: first, seed 0, done before" in capsys.readouterr().out
    trainings.clear()
    main(["grid", "grid.yaml"])
    assert trainings == []
    assert len(list(Path("runs/tiny").glob("*.csv"))) == 1, "an equal table isn't kept twice"


def test_each_run_appends_its_figures_and_is_not_trained_again_anywhere(trainings, capsys, monkeypatch):
    monkeypatch.setattr("lightning_uda.commands.figures._about", lambda _: ("2026-01-02", "abc", "CPU", "2.15"))
    write_grid(metrics=["miou", "train/tail_classes", "minutes"])
    trainings.results["tiny/seed_1/second"] = KeyboardInterrupt
    with pytest.raises(SystemExit) as end:
        main(["grid", "grid.yaml", "--figures", "kept/figures.csv"])
    assert end.value.code == 130
    with Path("kept/figures.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["seed"], float(line["miou"])) for line in lines] == [
        *[("first", "0", 20.0), ("second", "0", 31.0), ("first", "1", 22.0)]
    ]
    assert [lines[0][name] for name in ("date", "commit", "machine", "torch")] == ["2026-01-02", "abc", "CPU", "2.15"]
    assert all(0 <= float(line["minutes"]) < 1 for line in lines)
    assert float(lines[2]["train/tail_classes"]) == 1

    trainings.clear()
    trainings.results.clear()
    elsewhere = ["grid", "grid.yaml", "--figures", "kept/figures.csv", "--output", "elsewhere"]
    main(elsewhere)
    assert runs_of(trainings) == ["tiny/seed_1/first", "tiny/seed_1/second"], "the second row starts from the first"
    assert table("elsewhere/tiny/table.csv")["second", "miou"]["mean"] == "29.0"
    assert len(Path("kept/figures.csv").read_text().splitlines()) == 5
    trainings.clear()
    main([*elsewhere[:-1], "third_place"])
    assert trainings == []
    assert table("third_place/tiny/table.csv") == table("elsewhere/tiny/table.csv")
    assert capsys.readouterr().out.splitlines()[-1] == "third_place/tiny/table.csv"


def test_figures_say_how_they_came_about(tmp_path):
    for seed, record in enumerate(["git: 1a2b3c4d5e6f, 2 files changed\n", "versions: {torch: 2.15.0}\n"]):
        (tmp_path / RECORD_FILE).write_text(record)
        FiguresFile(tmp_path / "figures.csv", ("seed",)).add("first", {"seed": seed}, {"miou": 12.34567}, tmp_path)
    lines = read_rows(tmp_path / "figures.csv")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", lines[0]["date"])
    assert [line["commit"] for line in lines] == ["1a2b3c4", ""], "the commit that the run began at, outside git none"
    assert (lines[0]["torch"], lines[0]["miou"]) == (torch.__version__, "12.3457")
    assert FiguresFile(tmp_path / "figures.csv", ("seed",)).find("first", {"seed": 1}) == {"miou": 12.3457}


def test_figures_of_another_grid_are_refused(trainings):
    Path("figures.csv").write_text("row,fold,miou\na,1,2\n")
    with pytest.raises(SystemExit, match=r"figures.csv: found no column 'seed' in \['row', 'fold', 'miou'\]"):
        main(["grid", str(write_grid()), "--figures", "figures.csv"])


def test_a_cell_that_is_no_number_and_no_jobs_are_refused(trainings):
    Path("figures.csv").write_text("row,seed,date,commit,machine,torch,miou\nfirst,0,,,,,1x5\n")
    with pytest.raises(SystemExit, match=r"figures.csv: row first: could not convert string to float: '1x5'. Mend"):
        main(["grid", str(write_grid()), "--figures", "figures.csv"])
    with pytest.raises(SystemExit, match=r"--jobs: found 0, expected a number from 1"):
        main(["grid", str(write_grid()), "--jobs", "0"])


def test_orders_are_judged_by_the_paired_interval(trainings, capsys):
    miou = {"low": (20.0, 21.0, 22.0), "high": (25.0, 26.1, 27.2), "near": (25.1, 28.0, 25.0)}
    MIOU.update({(row, seed): value for row, values in miou.items() for seed, value in enumerate(values)})
    rows = {row: {"config": "a.yaml"} for row in miou}
    write_grid(rows=rows, seeds=[0, 1, 2], orders={"ours": ["low", "high", "near", "low"]})
    main(["grid", "grid.yaml"])
    with Path("runs/tiny/orders.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert [(step["lower"], step["higher"], step["holds"]) for step in steps] == [
        *[("low", "high", "yes"), ("high", "near", "not resolved"), ("near", "low", "no")]
    ]
    assert float(steps[0]["difference"]) == pytest.approx(5.1)
    assert float(steps[0]["half_width"]) == pytest.approx(4.30265 * 0.1 / 3**0.5, abs=1e-3)
    assert "not resolved" in capsys.readouterr().out


@pytest.mark.parametrize("content", ['{"argu', "{}", "[]"])
def test_a_point_whose_stamp_is_damaged_counts_as_not_done(trainings, content):
    write_grid()
    main(["grid", "grid.yaml"])
    (stamp,) = Path("runs/tiny/seed_1/second").glob(f"version_*/{STAMP}")
    stamp.write_text(content)
    trainings.clear()
    main(["grid", "grid.yaml"])
    assert runs_of(trainings) == ["tiny/seed_1/second"]


def test_a_run_that_does_not_stop_with_its_grid_is_ended(trainings, monkeypatch):
    class Deaf:
        told = ended = False

        def __init__(self, command, env):
            pass

        def wait(self, timeout=None):
            raise KeyboardInterrupt if timeout is None else subprocess.TimeoutExpired("run", timeout)

        def terminate(self):
            Deaf.told = True

        def kill(self):
            Deaf.ended = True

    monkeypatch.setattr(module.subprocess, "Popen", Deaf)
    write_grid()
    with pytest.raises(SystemExit) as end:
        main(["grid", "grid.yaml"])
    assert (end.value.code, Deaf.told, Deaf.ended) == (130, True, True)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_failed_run_and_what_starts_from_it_are_named_and_passed_over(trainings, jobs, capsys):
    rows = {"first": None, "second": {"options": [AFTER_FIRST]}, "third": {"options": ["--x={run:second}/y"]}}
    write_grid(rows=rows, seeds=[0, 1])
    trainings.results["tiny/seed_0/first"] = 1
    with pytest.raises(SystemExit) as end:
        main(["grid", "grid.yaml", "--jobs", jobs])
    assert end.value.code == (
        "error: 1 of 6 points failed, first, seed 0; passed over, as they start from these: second, seed 0, third, "
        "seed 0. Their messages are above. The same command tries them again."
    )
    assert sorted(runs_of(trainings)) == sorted(
        ["tiny/seed_0/first", *(f"tiny/seed_1/{row}" for row in ("first", "second", "third"))]
    )
    assert (table()["first", "miou"]["runs"], table()["second", "miou"]["mean"]) == ("1", "27.0")
    trainings.results.clear()
    main(["grid", "grid.yaml", "--jobs", jobs])
    assert table()["third", "miou"]["runs"] == "2"
    assert "--x=runs/tiny/seed_0/second/version_0/y" in next(
        words for words in trainings if "tiny/seed_0/third" in words
    )


def test_what_starts_from_a_run_that_was_trained_anew_is_trained_anew(trainings):
    write_grid(seeds=[0])
    main(["grid", "grid.yaml"])
    write_grid(seeds=[0], rows={"first": {"options": ["--x=1"]}, "second": {"options": [AFTER_FIRST]}})
    main(["grid", "grid.yaml"])
    assert len(trainings) == 4
    assert "--model.init_from=runs/tiny/seed_0/first/version_1" in trainings[3]


def test_chosen_rows_bring_those_that_they_start_from_but_tabulate_alone(trainings):
    write_grid(seeds=[0], rows={"first": None, "second": {"options": [AFTER_FIRST]}, "third": None})
    main(["grid", "grid.yaml", "--rows", "second"])
    assert runs_of(trainings) == ["tiny/seed_0/first", "tiny/seed_0/second"]
    assert {row for row, _ in table()} == {"second"}


def test_a_parent_is_a_row_whose_name_and_run_others_may_use(trainings):
    again = {"parent": "first", "command": "validate", "config": "{parent}.yaml", "run": "tiny_bn/{parent}_{seed}"}
    again["options"] = ["--ckpt_path={run:{parent}}/checkpoints/last.ckpt"]
    write_grid(rows={"first": None, "again": again}, seeds=[5], options=["--data.num_workers=0"])
    main(["grid", "grid.yaml"])
    assert trainings[1][:5] == [
        *["validate", "--config=first.yaml", "--seed_everything=5", "--data.num_workers=0"],
        "--ckpt_path=runs/tiny/seed_5/first/version_0/checkpoints/last.ckpt",
    ]
    assert runs_of(trainings)[1] == "tiny_bn/first_5"


def test_further_axes_make_points_and_folds_are_pooled(trainings, monkeypatch):
    pooled = []
    monkeypatch.setattr(
        "lightning_uda.commands.grid_tables.report_folds", lambda runs, output: pooled.append((runs, output))
    )
    axes = {"city": ["rome", "rio"], "fold": [0, 1]}
    options = ["--data.val.city={city}", "--data.val.fold={fold}"]
    write_grid(rows={"first": None}, seeds=[0], axes=axes, options=options, run="{row}/{city}_{fold}", folds=True)
    main(["grid", "grid.yaml"])
    places = ["rome_0", "rome_1", "rio_0", "rio_1"]
    assert runs_of(trainings) == [f"first/{place}" for place in places]
    assert trainings[2][3:5] == ["--data.val.city=rio", "--data.val.fold=0"]
    assert pooled == [([Path(f"runs/first/{place}/version_0") for place in places], Path("runs/tiny/first_folds.csv"))]


def test_chosen_values_of_axes_make_the_points(trainings):
    axes = {"city": ["rome", "rio", "ulm"], "fold": [0, 1]}
    write_grid(rows={"first": None}, seeds=[0, 1], axes=axes, options=[], run="{row}/{seed}_{city}_{fold}")
    main(["grid", "grid.yaml", "--axes", "fold=1", "city=rome", "city=ulm", "--seeds", "1"])
    assert runs_of(trainings) == ["first/1_rome_1", "first/1_ulm_1"]
    with pytest.raises(
        SystemExit, match=r"--axes: found 'fold=2'; expected some of \['seed=0', .*'fold=0', 'fold=1'\]"
    ):
        main(["grid", "grid.yaml", "--axes", "fold=2"])


def test_folders_of_the_data_are_named_once_and_given_anew(trainings):
    rows = {"first": {"options": ["--data.labelled_target.root={photos}"]}}
    options = ["--data.source.root={games}", "--data.target.root={photos}"]
    write_grid(rows=rows, seeds=[0], options=options, folders={"games": "data/games", "photos": "data/photos"})
    main(["grid", "grid.yaml", "--folders", "photos=/a b/x=1", "--", "--data.source.root=c"])
    assert trainings[0][3:7] == [
        *["--data.source.root=data/games", "--data.target.root=/a b/x=1", "--data.labelled_target.root=/a b/x=1"],
        "--data.source.root=c",
    ]
    for wrong in ("photo=x", "photos", "photos="):
        with pytest.raises(SystemExit, match=rf"found '{wrong}'; expected \['games=FOLDER', 'photos=FOLDER'\]"):
            main(["grid", "grid.yaml", "--folders", wrong])
    write_grid()
    with pytest.raises(SystemExit, match="--folders: found 'a=b'; expected none, as the file names no folders"):
        main(["grid", "grid.yaml", "--folders", "a=b"])


def test_several_jobs_run_at_once_in_one_thread_each_and_write_what_they_print_to_files(trainings, monkeypatch):
    seen = []
    train = Runner._train_in_process

    def spy(self, point, place, jobs):
        seen.append((time.monotonic(), point.run))
        ended = train(self, point, place, jobs)
        seen.append((time.monotonic(), point.run))
        return ended

    monkeypatch.setattr(Runner, "_train_in_process", spy)
    monkeypatch.delenv("OMP_NUM_THREADS")
    environments = []
    popen = module.subprocess.Popen
    monkeypatch.setattr(
        module.subprocess, "Popen", lambda *a, **k: environments.append(k["env"]["OMP_NUM_THREADS"]) or popen(*a, **k)
    )
    write_grid()
    trainings.results |= {f"tiny/seed_{seed}/first": 0.3 for seed in (0, 1)}
    main(["grid", "grid.yaml", "--jobs", "2"])
    order = [run for _, run in sorted(seen)]
    assert set(order[:2]) == {"tiny/seed_0/first", "tiny/seed_1/first"}, "both started before one ended"
    assert environments == ["1"] * 4
    assert len(list(Path("runs/tiny").rglob("console_0.txt"))) == 4


def test_two_grids_at_once_train_no_point_twice(trainings):
    grid = read_grid(write_grid())
    trainings.results |= {point.run: 0.2 for point in grid.points}
    runners = [Runner(name, grid.points, Path("runs")) for name in ("one", "other")]
    threads = [threading.Thread(target=runner.run) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(runs_of(trainings)) == sorted(point.run for point in grid.points)
    assert all(runner.to_do() == runner.failed == [] for runner in runners)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "expected a grid file, with `rows`"),
        ({"rows": {"a": {"optoins": []}}}, r"row a: found \['optoins'\]; expected some of \['command', 'config'"),
        ({"sedes": [1]}, r"found \['sedes'\]; expected some of"),
        ({"rows": {"a": "b.yaml"}}, "row a: found 'b.yaml'; expected settings"),
        ({"rows": {"a": {"command": "predict"}}}, "row a: found command 'predict'; expected one of"),
        (
            {"run": "tiny/{row}"},
            r"first, seed 0 and first, seed 1 are both called 'tiny/first'; tell them apart in `run`",
        ),
        ({"options": ["--x={sed}"]}, r"found \{sed\} in '--x=\{sed\}'; expected one of \['parent', 'row', 'seed'\]"),
        (
            {"rows": {"a": {"options": [AFTER_FIRST]}, "first": None}},
            r"row a starts from 'first'; expected a row above",
        ),
        ({"rows": {"a": {"options": ["--x={run:a}"]}}}, r"row a starts from 'a'; expected a row above it: \[\]"),
        ({"seeds": 3}, r"seeds: found 3; expected a list, such as \[3\]"),
        ({"axes": {"fold": "a"}}, r"fold: found 'a'; expected a list, such as \[a\]"),
        ({"options": "--x=1"}, r"row first: options: found '--x=1'; expected a list"),
        ({"rows": {"a": {"options": ["--x={run:b-c}"]}}}, "row a starts from 'b-c'; expected a row above it"),
        ({"tables": {"T": "first"}}, "tables: T: found 'first'; expected a list"),
        ({"metrics": "miou"}, "metrics: found 'miou'; expected a list"),
        ({"tables": {"T": ["none"]}}, "tables, orders and control: found no row 'none'"),
        ({"control": "none"}, "tables, orders and control: found no row 'none'"),
        ({"orders": {"O": ["none"]}}, "tables, orders and control: found no row 'none'"),
        ({"orders": {"O": "first"}}, "orders: O: found 'first'; expected a list"),
        ({"rows": {1: {"config": "a.yaml"}}}, "rows: found the name 1; expected a text"),
        ({"tables": {1: ["first"]}}, "tables: found the name 1; expected a text"),
        ({"orders": {1: ["first"]}}, "orders: found the name 1; expected a text"),
        ({"config": None}, "config: found None; expected a text"),
        ({"run": ""}, "run: found ''; expected a text"),
        ({"run": "../../x{seed}{row}"}, "row first: run: found '../../x0first'; expected a folder below"),
        ({"name": "/proc/x"}, "name: found '/proc/x'; expected a folder below"),
        ({"tables": {"T": [["first"]]}}, r"metrics, tables and orders: found \['first'\]; expected a text"),
        ({"orders": {"O": [["first"]]}}, r"metrics, tables and orders: found \['first'\]; expected a text"),
        ({"metrics": [3]}, "metrics, tables and orders: found 3; expected a text"),
        ({"tables": {"T": []}}, "tables: T: found an empty list"),
        ({"orders": {"O": []}}, "orders: O: found an empty list"),
        ({"axes": {"fold": []}}, "fold: found an empty list"),
        ({"folders": ["a"]}, r"folders: found \['a'\]; expected folders by name"),
        ({"folders": {1: "a"}}, "folders: found the name 1; expected a text"),
        ({"folders": {"a": 3}}, "folders: a: found 3; expected a text"),
        ({"folders": {"seed": "a"}}, r"folders: found \['seed'\], which have another meaning"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_files_that_are_no_grid_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_grid(write_grid(**changes))


def test_a_row_without_config_and_a_chosen_row_that_is_none_are_refused(capsys):
    Path("grid.yaml").write_text("rows: {a: }")
    with pytest.raises(ValueError, match="row a: found no `config`"):
        read_grid(Path("grid.yaml"))
    write_grid()
    with pytest.raises(SystemExit, match=r"found no row 'none'; its rows are \['first', 'second'\]"):
        main(["grid", "grid.yaml", "--rows", "none"])


def write_config(name, batch_size=2, learning_rate=0.1):
    dataset = {"class_path": "tests.fixtures.tiny.TinyDataset"}
    data = {"label_space": "camvid", "source": dataset, "target": dataset, "val": dataset, "num_workers": 0}
    last = {"class_path": "ModelCheckpoint", "init_args": {"filename": "last", "enable_version_counter": False}}
    trainer = {"max_steps": 3, "val_check_interval": 3, "check_val_every_n_epoch": None, "log_every_n_steps": 1}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": learning_rate}}
    model = {"network": {"class_path": "tests.fixtures.tiny.TinyNetwork"}, "optimizer": optimizer}
    content = {
        "data": {"class_path": "UDADataModule", "init_args": data | {"batch_size": batch_size}},
        "model": {"class_path": "SourceOnly", "init_args": model},
        "trainer": trainer | {"callbacks": [last], "enable_progress_bar": False, "enable_model_summary": False},
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))


def last_evaluation(row, seed):
    """Scores of a run of the test below, as its files have them: NaN where a class is absent."""
    (folder,) = (path.parent for path in Path(f"runs/tiny/seed_{seed}/{row}").glob(f"version_*/{STAMP}"))
    with (folder / "iou.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    return {name: float(cell or "nan") for name, cell in last.items() if name.startswith(("miou", "iou_"))}


def assert_spread(measured, count, mean, deviation):
    """Cells of the table are those of the numbers that aren't NaN."""
    present = measured[~np.isnan(measured)]
    assert int(count) == len(present)
    assert [mean == "", deviation == ""] == [len(present) < 1, len(present) < 2]
    if len(present) > 0:
        assert float(mean) == pytest.approx(present.mean(), abs=2e-4)
    if len(present) > 1:
        assert float(deviation) == pytest.approx(present.std(ddof=1), abs=2e-4)


@pytest.mark.slow
def test_a_grid_of_real_runs_with_a_failing_row_is_tabulated_by_what_the_runs_files_say(capsys):
    write_config("slow", learning_rate=0.001)
    write_config("fast", learning_rate=0.5)
    write_config("broken", batch_size=30)
    checkpoint = "--ckpt_path={run:fast}/checkpoints/last.ckpt"
    rows = {
        "slow": None,
        "fast": None,
        "again": {"command": "validate", "config": "fast.yaml", "options": [checkpoint]},
        "broken": None,
        "orphan": {"config": "slow.yaml", "options": ["--ckpt_path={run:broken}/checkpoints/last.ckpt"]},
    }
    write_grid(rows=rows)
    with pytest.raises(SystemExit) as end:
        main(["grid", "grid.yaml", "--jobs", "2"])
    assert "2 of 10 points failed" in end.value.code
    assert set(re.findall(r"\w+, seed \d", end.value.code)) == {
        f"{row}, seed {seed}" for row in ("broken", "orphan") for seed in (0, 1)
    }
    assert "expected at least one batch of 30" in Path("runs/tiny/seed_0/broken/console_0.txt").read_text()
    assert not list(Path().rglob("*.wandb"))

    found = table()
    scores = {row: [last_evaluation(row, seed) for seed in (0, 1)] for row in ("slow", "fast", "again")}
    np.testing.assert_equal(scores["again"], scores["fast"])  # the checkpoint was evaluated once more
    assert any(np.isnan(value) for value in scores["slow"][0].values()), "a class is absent"
    for row, metric in itertools.product(scores, scores["slow"][0]):
        values = np.array([scores[row][seed][metric] for seed in (0, 1)])
        pairs = values - [scores["slow"][seed][metric] for seed in (0, 1)]
        assert_spread(values, *(found[row, metric][name] for name in ("runs", "mean", "deviation")))
        if row != "slow":  # the control
            names = ("pairs", "difference", "difference_deviation")
            assert_spread(pairs, *(found[row, metric][name] for name in names))
    below = [sum(value < 1 for name, value in one.items() if name.startswith("iou_")) for one in scores["fast"]]
    assert float(found["fast", "classes_below_1"]["mean"]) == statistics.mean(below)
    assert Path("runs/tiny/report.html").is_file()


def shipped_points(path, **options):
    return read_grid(path, **options).points


SLOW = ("minicity", "minicity_mit", "t2sda", "dusk")
"""Grids whose options are those of others, for other networks and sizes, or that take long."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in SHIPPED],
)
def test_shipped_grids_are_accepted_by_the_command_line(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = read_grid(path, seeds=[0])
    points = (row.points[0] for row in grid.rows.values())  # configs as they are have a test of their own
    by_options = {tuple(word for word in one.arguments if not word.startswith("--config=")): one for one in points}
    Runner(grid.name, grid.points, Path("nowhere")).check(by_options.values())
    assert len(grid.rows) > 2


@pytest.mark.parametrize("name", ["minicity", "dusk"])
def test_tables_of_self_training_compare_with_their_control_and_differ_in_the_statistics_alone(name):
    grid = read_grid(ROOT / f"configs/grids/{name}.yaml")
    controls = [names[0] for title, names in grid.tables.items() if title.startswith("Self-training")]
    assert controls == ["zero_labels", "zero_labels_kept"]
    assert grid.control is None
    for row in ("zero_labels", "st", "cbst", "cbst_sp"):
        for one, other in zip(grid.rows[row].points, grid.rows[f"{row}_kept"].points, strict=True):
            assert set(other.arguments) - set(one.arguments) == {
                "--model.network.init_args.batch_norm=frozen_statistics",
                "--trainer.callbacks+=AdaptBatchNorm",
                "--trainer.callbacks.init_args.when=start",
            }


def test_make_calls_the_shipped_grids_with_its_options(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    targets = ("minicity", "minicity_mit", "dusk", "dusk_scratch", "nthu", "daformer", "t2sda")
    assert {path.stem for path in SHIPPED} == set(targets)
    values = {
        "SEEDS": "4 5",
        "JOBS": "2",
        "OPTIONS": "--trainer.max_steps 7",
        "ROW": "st",
        "GTA5": "g",
        "CITYSCAPES": "c",
        "NTHU": "n",
        "CAMVID": "d",
    }
    roots = {"dusk": ["d", "d", "d"], "dusk_scratch": ["d", "d", "d"], "nthu": ["c", "n", "n"]}
    roots |= {"daformer": ["g", "c", "c"], "t2sda": ["g", "c", "c"]}
    for name in targets:
        make = [
            "make",
            "--no-print-directory",
            "-n",
            "-o",
            ".venv/.ready",
            name.replace("_", "-"),
            *(f"{key}={value}" for key, value in values.items()),
        ]
        outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        recipe = subprocess.run(make, env=outside, capture_output=True, text=True, check=True).stdout
        words = shlex.split(recipe.replace("\\\n", ""))
        assert words[:3] == [".venv/bin/lightning-uda", "grid", f"configs/grids/{name}.yaml"]
        assert words[words.index("--jobs") + 1] == "2"
        place = words.index("--")
        main([*words[1:place], "--output", "nowhere", "--dry-run", *words[place:]])
        lines = capsys.readouterr().out.splitlines()
        commands = [shlex.split(line.split(": ", 1)[1]) for line in lines]
        for command in commands:
            options = dict(itertools.pairwise(command))
            assert options["--trainer.max_steps"] == "7"
            given = (re.fullmatch(r"--data\.(?:source|target|val)\.root=(.*)", word) for word in command)
            assert [found[1] for found in given if found] == roots.get(name, [])
        seeds = {word for command in commands for word in command if word.startswith("--seed_everything")}
        assert seeds == ({"--seed_everything=0"} if name == "nthu" else {"--seed_everything=4", "--seed_everything=5"})
        assert "--figures" not in words, "figures of other options are no figures of the benchmark"
        counts = {"minicity": 2 * 65, "minicity_mit": 2 * 16, "dusk": 4 * 33, "dusk_scratch": 4 * 19, "nthu": 40}
        counts |= {"t2sda": 2 * 24, "daformer": 2 * 15}
        assert len(commands) == counts[name]


@pytest.mark.parametrize("name", ["minicity", "minicity_mit", "dusk", "dusk_scratch"])
def test_committed_figures_are_those_of_the_shipped_rows(name):
    grid = read_grid(ROOT / f"configs/grids/{name}.yaml")
    file = FiguresFile(ROOT / f"docs/figures/{name}.csv", tuple(grid.points[0].values))
    found = {
        name: sum(file.find(name, point.values) is not None for point in row.points) for name, row in grid.rows.items()
    }
    assert sum(found.values()) == len(file.figures), "a line belongs to no row"
    assert all(found[name] for name in ("source_only", "dacs"))


@pytest.fixture
def forked(monkeypatch):
    """Trainings in processes that need no time for imports; a test of sweeps starts one as users do."""
    several = {name: getattr(subprocess, name) for name in ("STDOUT", "TimeoutExpired")}
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=ForkedCommand, **several))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("who", "status"), few_of([("run", 1), ("grid", 143)], ("grid", 143)))
def test_a_point_is_done_at_its_last_step_alone_and_goes_on_after_a_stop(tmp_path, who, status, capfd):
    config = yaml.safe_load(Path(stages.write_config(tmp_path, "SourceOnly")).read_text())
    sent = {"class_path": "tests.fixtures.signals.StopsOnce", "init_args": {"done": 1, "parent": who == "grid"}}
    config["trainer"]["callbacks"] = sent
    Path("only.yaml").write_text(yaml.safe_dump(config))
    write_grid(rows={"only": None}, seeds=[0])
    with pytest.raises(SystemExit) as end:
        main(["grid", "grid.yaml"])
    out, version = capfd.readouterr().out, Path("runs/tiny/seed_0/only/version_0")
    if who == "run":
        assert "1 of 1 points failed, only, seed 0" in str(end.value.code)
    else:
        assert end.value.code == status
        assert "stopped in only, seed 0; the same command goes on with it" in out
    assert "Stopped by SIGTERM, after step 2 of 4." in out
    assert not (version / STAMP).exists()
    main(["grid", "grid.yaml"])
    assert "going on from step 2: " in capfd.readouterr().err
    assert [path.name for path in version.parent.glob("version_*")] == ["version_0"]
    assert "minutes" not in read_stamp(version)
    assert [row["step"] for row in read_rows(version / "iou.csv")] == ["4"]
    main(["grid", "grid.yaml"])
    assert "done before" in capfd.readouterr().out


@pytest.mark.usefixtures("forked")
def test_a_point_whose_time_is_up_is_not_done(tmp_path, capfd):
    config = yaml.safe_load(Path(stages.write_config(tmp_path, "SourceOnly")).read_text())
    config["trainer"] |= {"callbacks": {"class_path": "tests.fixtures.signals.TakesAnHour"}, "max_time": "00:00:59:00"}
    Path("only.yaml").write_text(yaml.safe_dump(config))
    write_grid(rows={"only": None}, seeds=[0])
    for going_on in (False, True):  # the second time it has no time left
        with pytest.raises(SystemExit, match="1 of 1 points failed, only, seed 0"):
            main(["grid", "grid.yaml"])
        err = capfd.readouterr().err
        assert ("going on from step 3" in err) is going_on
        assert "trainer.max_time is up after step 3 of 4" in err
    assert [path.name for path in Path("runs/tiny/seed_0/only").glob("version_*")] == ["version_0"]


@pytest.mark.usefixtures("forked")
def test_after_an_error_a_point_starts_anew(tmp_path):
    config = yaml.safe_load(Path(stages.write_config(tmp_path, "SourceOnly")).read_text())
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}}
    config["model"]["init_args"]["optimizer"] = sgd
    Path("only.yaml").write_text(yaml.safe_dump(config))
    write_grid(rows={"only": None}, seeds=[0])
    with pytest.raises(SystemExit, match="1 of 1 points failed"):
        main(["grid", "grid.yaml"])
    version = Path("runs/tiny/seed_0/only/version_0")
    assert list(version.glob("checkpoints/*.ckpt")), "it could have gone on, with a rate that can't be right"
    sgd["init_args"]["lr"] = 0.01
    Path("only.yaml").write_text(yaml.safe_dump(config))
    main(["grid", "grid.yaml"])
    assert read_stamp(version) == {}
    assert read_stamp(version.with_name("version_1"))["minutes"] > 0
