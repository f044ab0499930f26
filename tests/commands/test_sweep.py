"""Sweep files of W&B, run without it."""

import csv
import itertools
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from lightning_uda.__main__ import main
from lightning_uda.cli import run_trainer  # before tests put something else in the place of subprocesses
from lightning_uda.commands import runner
from lightning_uda.commands.runner import STAMP, Runner
from lightning_uda.commands.sweep import read_sweep
from lightning_uda.metrics import MIOU_NOTE
from lightning_uda.tables import append_row
from tests.report.test_report import CLASSES, write_evaluation

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
THRESHOLD = "model.init_args.pixel_weighting.init_args.threshold"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A one-step DACS run on tiny data, as a config file; the test and its processes work in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    dataset = {"class_path": "tests.fixtures.tiny.TinyDataset"}
    data = {"label_space": "camvid", "source": dataset, "target": dataset, "val": dataset, "num_workers": 0}
    model = {
        "network": {"class_path": "tests.fixtures.tiny.TinyNetwork"},
        "pixel_weighting": {"class_path": "BatchConfidence"},
    }
    trainer = {"max_steps": 2, "val_check_interval": 1, "check_val_every_n_epoch": None, "log_every_n_steps": 1}
    content = {
        "data": {"class_path": "UDADataModule", "init_args": data},
        "model": {"class_path": "DACS", "init_args": model},
        "trainer": trainer | {"enable_progress_bar": False, "enable_model_summary": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return "config.yaml"


def write_sweep(path="sweep.yaml", **changes):
    content = {
        "program": "lightning-uda",
        "name": "tiny",
        "method": "grid",
        "metric": {"name": "val/miou", "goal": "maximize"},
        "parameters": {THRESHOLD: {"values": [0.5, 0.9]}},
        "command": ["${env}", "${program}", "fit", "--config=config.yaml", "--trainer.logger=WandbLogger", "${args}"],
    }
    Path(path).write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return Path(path)


@dataclass
class Ended:
    """A process that has ended."""

    status: int

    def wait(self, timeout=None):
        return self.status


@pytest.fixture
def trainings(config, monkeypatch):
    """Trainings as commands only: each leaves a run folder whose mIoU is 100 times the threshold; 0.9 fails once."""
    commands = []

    def run(command, env):
        assert "WANDB_MODE" in env
        commands.append(command[3:])
        options = dict(itertools.pairwise(command))
        folder = Path(options["--output"]) / options["--name"]
        version = folder / f"version_{len(list(folder.glob('version_*')))}"
        version.mkdir(parents=True)
        threshold = next(float(word.split("=")[1]) for word in command if word.startswith(f"--{THRESHOLD}="))
        if threshold == 0.9 and len(commands) == 2:
            return Ended(1)
        for step, points in ((1, 3), (2, 0)):
            write_evaluation(version, step, [100 * threshold + points] * len(CLASSES))
        append_row(version / "metrics.csv", {"step": 1, "train/loss_source": 0.5})
        return Ended(0)

    monkeypatch.setattr(runner.subprocess, "Popen", run)
    return commands


@pytest.fixture
def accepted(monkeypatch):
    """Spares the parsing of arguments, which other tests look at."""
    monkeypatch.setattr(Runner, "check", lambda self, points: None)


def parsed(arguments, capsys):
    """The config that the command line makes of arguments."""
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--print_config"])
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)


def test_the_grid_has_the_arguments_that_the_agent_of_wandb_gives(tmp_path):
    values = {"model.init_args.beta": [0, 0.5], "seed_everything": [0, 1], "data.init_args.flags": [[1, True]]}
    parameters = {name: {"values": several} for name, several in values.items()}
    path = write_sweep(tmp_path / "s.yaml", parameters=parameters | {"trainer.max_steps": {"value": 10}})
    sweep = read_sweep(path, ["--data.num_workers=0"])
    assert [point.name for point in sweep.points] == [
        f"beta={beta},seed_everything={seed},flags=_1,_True_" for beta in (0, 0.5) for seed in (0, 1)
    ]
    assert len({tuple(point.arguments) for point in sweep.points}) == 4
    for point in sweep.points:
        by_agent = create_sweep_command_args({"args": {name: {"value": v} for name, v in point.values.items()}})["args"]
        before = ["fit", "--config=config.yaml", "--trainer.logger=WandbLogger"]
        assert point.arguments == [*before, *by_agent, "--data.num_workers=0"]


def test_parameters_with_the_same_last_part_are_named_in_full(tmp_path):
    parameters = {"model.a.lr": {"values": [1]}, "model.b.lr": {"values": [2]}}
    (point,) = read_sweep(write_sweep(tmp_path / "s.yaml", parameters=parameters)).points
    assert point.name == "model.a.lr=1,model.b.lr=2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, r"found method: bayes, but .* only plain grids .* `wandb sweep .*s.yaml`"),
        ({"early_terminate": {"type": "hyperband"}}, r"found \['early_terminate'\]"),
        ({"parameters": {"lr": {"min": 0, "max": 1}}}, "parameter lr: found {'min': 0, 'max': 1}; expected `value`"),
        ({"parameters": {"lr": {"values": []}}}, "parameter lr"),
        ({"parameters": {"lr": {"values": [1, 1]}}}, r"several points of one name: \['lr=1'\]"),
        ({"command": ["python", "train.py", "${args}"]}, "expected `lightning-uda`, `fit`, its options and once"),
        ({"command": ["python", "train.py", "fit", "${args}"]}, "expected `lightning-uda`"),
        ({"command": ["lightning-uda", "fit"]}, r"once `\$\{args\}`"),
        ({"command": ["lightning-uda", "fit", "${args_json}"]}, r"once `\$\{args\}`"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_files_that_only_wandb_can_run_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_sweep(write_sweep(tmp_path / "s.yaml", **changes))


@pytest.mark.parametrize("text", ["", "method: grid", "- a", "a: [1"])
def test_files_that_are_no_sweep_are_refused(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"expected a W&B sweep file|can't be read as YAML"):
        read_sweep(tmp_path / "s.yaml")


def test_arguments_as_wandb_writes_them_are_parsed(config, capsys):
    write_sweep(parameters={THRESHOLD: {"values": [1]}, "model.init_args.evaluate": {"value": "teacher"}})
    (point,) = read_sweep(Path("sweep.yaml")).points
    model = parsed(point.arguments, capsys)["model"]["init_args"]
    assert model["pixel_weighting"]["init_args"]["threshold"] == 1.0
    assert model["evaluate"] == "teacher"


def test_a_point_that_the_command_line_refuses_ends_the_sweep_before_training(trainings, capsys):
    write_sweep(parameters={"model.init_args.treshold": {"values": [0.5]}})
    with pytest.raises(SystemExit, match=r"point treshold=0.5 can't be run: lightning-uda fit"):
        main(["sweep", "sweep.yaml"])
    assert "treshold" in capsys.readouterr().err
    assert trainings == []


def test_a_dry_run_shows_the_points_and_their_commands(trainings, capsys):
    write_sweep()
    main(["sweep", "sweep.yaml", "--dry-run", "--output", "out", "--", "--trainer.max_steps", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["threshold=0.5 (to do)", "threshold=0.9 (to do)"]
    command = shlex.split(lines[0].split(": ", 1)[1])
    assert command[:2] == ["lightning-uda", "fit"]
    assert command[-6:] == ["--trainer.max_steps", "1", "--output", "out", "--name", "tiny/threshold=0.5"]
    assert trainings == []
    assert not Path("out").exists()


def test_a_sweep_goes_on_after_a_failure_and_later_from_where_it_was(trainings, accepted, capsys):
    write_sweep(parameters={THRESHOLD: {"values": [0.5, 0.9, 0.7]}})
    with pytest.raises(SystemExit, match=r"1 of 3 points failed, threshold=0.9\. Their messages are above"):
        main(["sweep", "sweep.yaml"])
    assert len(trainings) == 3
    with Path("runs/tiny/sweep.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        [THRESHOLD, "val/miou_last", "val/miou_best", "best_step", "run"],
        ["0.5", "50.0", "53.0", "1", "runs/tiny/threshold=0.5/version_0"],
        ["0.9", "", "", "", ""],
        ["0.7", "70.0", "73.0", "1", "runs/tiny/threshold=0.7/version_0"],
    ]
    out = capsys.readouterr().out
    assert "The best step is chosen with target labels." in " ".join(out.split())
    assert MIOU_NOTE in " ".join(out.split())
    lines = [line.split() for line in out.splitlines()]
    assert ["threshold=0.5", "50.0", "53.0", "1"] in lines
    assert ["threshold=0.9", "-", "-", "-"] in lines

    main(["sweep", "sweep.yaml"])
    assert len(trainings) == 4
    assert trainings[-1][-1] == "tiny/threshold=0.9"
    out = capsys.readouterr().out
    assert "tiny 1/3: threshold=0.5, done before" in out
    assert ["threshold=0.9", "90.0", "93.0", "1"] in [line.split() for line in out.splitlines()]
    assert (Path("runs/tiny/threshold=0.9/version_1") / STAMP).is_file()
    assert sorted(path.name for path in Path("runs/tiny").glob("*.*ml")) == ["report.1.html", "report.html"]
    assert sorted(path.name for path in Path("runs/tiny").glob("*.csv")) == ["sweep.1.csv", "sweep.csv"]

    main(["sweep", "sweep.yaml"])
    assert len(trainings) == 4
    assert len(list(Path("runs/tiny").glob("*.csv"))) == 2, "an equal table isn't kept twice"


def test_other_options_train_anew_beside_the_old_runs(trainings, accepted):
    write_sweep(parameters={THRESHOLD: {"values": [0.5]}})
    main(["sweep", "sweep.yaml"])
    main(["sweep", "sweep.yaml", "--", "--seed_everything=1"])
    assert len(trainings) == 2
    assert len(list(Path("runs/tiny/threshold=0.5").glob(f"version_*/{STAMP}"))) == 2


def test_stopping_is_no_traceback(config, accepted, monkeypatch, capsys):
    class Stopped:
        def terminate(self):
            pass

        def wait(self, timeout=None):
            if timeout is None:
                raise KeyboardInterrupt

    monkeypatch.setattr(runner.subprocess, "Popen", lambda command, env: Stopped())
    write_sweep()
    with pytest.raises(SystemExit) as end:
        main(["sweep", "sweep.yaml"])
    assert end.value.code == 130
    assert "stopped in threshold=0.5; the same command goes on with it" in capsys.readouterr().out


@pytest.mark.slow
def test_points_are_trained_in_processes_of_their_own_without_wandb(config, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE")
    write_sweep(parameters={"data.init_args.batch_size": {"values": [2]}})
    main(["sweep", "sweep.yaml", "--output", "out"])
    run = tmp_path / "out/tiny/batch_size=2/version_0"
    assert {"config.yaml", "metrics.csv", "iou.csv", "confusions", "checkpoints", STAMP} <= {
        path.name for path in run.iterdir()
    }
    assert not list(tmp_path.rglob("*.wandb"))
    assert capsys.readouterr().out.splitlines()[-2:] == ["out/tiny/sweep.csv", "out/tiny/report.html"]


def test_shipped_sweeps_are_those_of_the_papers():
    grids = {path.stem: read_sweep(path) for path in SHIPPED}
    names = ("dsp_beta", "dsp_k", "cbst_portion", "ehtdi_tau")
    of_t2sda = (f"t2sda_{name}" for name in ("lambda", "tau", "beta", "alpha", "n_m"))
    others = (
        "seeds",
        "dacs_alpha",
        "ehtdi_lambda",
        "rare_class_temperature",
        "t2sda_lambda",
        "t2sda_tau",
        "t2sda_alpha",
    )
    assert set(grids) == {*names, *(f"minicity_{name}" for name in (*names, *others)), *of_t2sda, "st_sp_portion"}
    pull = "model.init_args.pull.init_args"
    portions = "model.init_args.rounds.init_args.portions"
    swept = {
        "seeds": {"seed_everything": [0, 1, 2, 3, 4]},
        "dacs_alpha": {"trainer.callbacks.init_args.decay": [0, 0.9, 0.99, 0.999]},
        "ehtdi_lambda": {"model.init_args.mixed_weight": [0.01, 0.1, 0.5, 1.0]},
        "rare_class_temperature": {"data.init_args.source_sampling.init_args.temperature": [0.01, 0.05, 0.2, 1.0]},
        "dsp_beta": {"model.init_args.beta": [0, 0.5, 0.6, 0.7, 0.8, 0.9, 1]},
        "dsp_k": {"model.init_args.long_tail_k": [0, 1, 2, 3]},
        "ehtdi_tau": {"model.init_args.htcm.init_args.tau": [0, 0.35, 0.55, 0.75, 0.95, 0.97]},
        "t2sda_lambda": {f"{pull}.weight": [0.01, 0.1, 0.5, 1.0]},
        "t2sda_tau": {f"{pull}.tau": [0.02, 0.2, 0.5, 1.0]},
        "t2sda_beta": {f"{pull}.class_weighting.init_args.beta": [0.1, 0.5, 1.0, 2.0]},
        "t2sda_alpha": {f"{pull}.alpha": [0.1, 0.5, 0.9]},
        "t2sda_n_m": {f"{pull}.n": [64, 128, 256], f"{pull}.m": [512, 1024, 2048]},
        "cbst_portion": {f"{portions}.initial": [0.1, 0.15, 0.2, 0.25, 0.3], f"{portions}.step": [0.025, 0.05, 0.1]},
    }
    for name, sweep in grids.items():
        expected = swept[name.removeprefix("minicity_").replace("st_sp_", "cbst_")]
        combinations = [tuple(point.values.values()) for point in sweep.points]
        assert all(list(point.values) == list(expected) for point in sweep.points)
        assert combinations == list(itertools.product(*expected.values()))


@pytest.mark.parametrize("last", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["last", "others"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_parsed_and_name_their_commands(path, last, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = path.relative_to(ROOT)
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comment[1].split() == f"# W&B: wandb sweep --project lightning_uda {file}".split()
    assert comment[3].split() == f"# local: lightning-uda sweep {file}".split()
    points = read_sweep(file).points
    for point in points[-1:] if last else points[:-1]:  # a parse takes a second
        content = parsed(point.arguments, capsys)
        for name, value in point.values.items():
            found = content
            for key in name.split("."):
                found = found[key] if key in found else found["init_args"][key]
                found = found[-1] if isinstance(found, list) else found
            assert float(found) == value


@pytest.mark.usefixtures("wandb_anew")
def test_the_command_of_a_shipped_sweep_trains_as_the_agent_of_wandb_calls_it(config, tmp_path, monkeypatch):
    content = yaml.safe_load((ROOT / "configs/sweeps/minicity_seeds.yaml").read_text())
    place = Path("configs/experiment/minicity/dacs.yaml")
    place.parent.mkdir(parents=True)
    Path(config).rename(place)  # tiny data and network, where the sweep has its experiment
    point = {"seed_everything": {"value": 3}}
    Path("point.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **point}))
    for name, value in {"SWEEP_ID": "s1", "RUN_ID": "r3", "SWEEP_PARAM_PATH": str(tmp_path / "point.yaml")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    macros = {"program": [content["program"]], "env": ["/usr/bin/env"], **create_sweep_command_args({"args": point})}
    words = itertools.chain(*(macros.get(word.strip("${}"), [word]) for word in content["command"]))
    env, program, *arguments = words
    assert (env, program) == ("/usr/bin/env", "lightning-uda")
    experiment = run_trainer(arguments).trainer.loggers[1].experiment
    assert (experiment.id, experiment.sweep_id, experiment.config["seed_everything"]) == ("r3", "s1", 3)
    assert 0 <= experiment.summary[content["metric"]["name"]] <= 100
    experiment.finish()
    assert len(list(Path("runs/minicity/seeds").rglob("offline-run-*-r3/run-r3.wandb"))) == 1
