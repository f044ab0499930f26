"""Runs that a signal stops say how they go on, and go on as if they had never been stopped."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_uda.__main__ import main
from lightning_uda.checkpoints import Found, read_checkpoint, write_checkpoint
from lightning_uda.data.streams import Stream
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.resuming import RunLogger
from lightning_uda.signals import TIME_IS_UP
from lightning_uda.tables import read_rows
from tests.fixtures.checkpoints import content
from tests.fixtures.choices import few_of
from tests.fixtures.processes import run, run_ranks, run_together
from tests.fixtures.stages import ON_TWO, steps_of, write_config
from tests.fixtures.tiny import TinyDataset
from tests.test_checkpoints import damage, error_of

ROOT = Path(__file__).parents[1]


def config_of(folder, method, **trainer):
    """A run of a few steps that keeps `last.ckpt` at every validation and evaluates every second step, or round."""
    folder.mkdir(exist_ok=True)
    path = Path(write_config(folder, method))
    config = yaml.safe_load(path.read_text())
    keep = {"filename": "last", "enable_version_counter": False}
    config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": keep}]
    if method != "SelfTraining":
        config["trainer"]["val_check_interval"] = 2
    config["trainer"] |= trainer
    path.write_text(yaml.safe_dump(config))
    return str(path)


def signal_at(hook, done, *numbers, **more):
    """Options that send signals to the run."""
    args = {"hook": hook, "done": done, "numbers": [int(number) for number in numbers], **more}
    options = ["--trainer.callbacks+=tests.fixtures.signals.SignalAt"]
    return options + [f"--trainer.callbacks.{name}={value}" for name, value in args.items()]


def stopped(*arguments):
    """Runs a command and gives the status that a signal ended it with."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


def tables(run):
    """All that a run writes down: curves, IoUs, confusion matrices, scores of images, notes, config."""
    kept = [f"{p.parent.name}/{p.name}" for folder in ("confusions", "image_scores") for p in run.glob(f"{folder}/*")]
    names = ["metrics.csv", "iou.csv", "notes.txt", *kept]
    config = yaml.safe_load((run / "config.yaml").read_text().replace(str(run.parents[1]), "FOLDER"))
    return {**{name: (run / name).read_text() for name in sorted(names)}, "config": config}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Gives the folder of a run that never stopped, and its last checkpoint, of each method."""
    runs = {}

    def run_of(method):
        if method not in runs:
            folder = tmp_path_factory.mktemp("whole") / method
            main(["fit", "--config", config_of(folder, method)])
            runs[method] = folder / method / "version_0"
        return runs[method], read_checkpoint(runs[method] / "checkpoints/last.ckpt")

    return run_of


MOMENTS = [
    ("DACS", "on_before_zero_grad", 0),
    ("DACS", "on_before_zero_grad", 1),
    ("DACS", "on_validation_start", 2),
    ("DACS", "on_train_batch_end", 3),
    ("SelfTraining", "on_before_zero_grad", 1),
    ("SelfTraining", "on_before_zero_grad", 3),  # the last step of the first round
    ("SelfTraining", "on_validation_start", 4),
    ("SelfTraining", "on_before_zero_grad", 4),
]


@pytest.mark.parametrize(("method", "hook", "done"), few_of(MOMENTS, MOMENTS[1], MOMENTS[2], MOMENTS[5]))
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(method, hook, done, whole, tmp_path, capsys):
    expected, last = whole(method)
    config = config_of(tmp_path / "runs", method)
    command = ["fit", "--config", config]
    assert stopped(*command, *signal_at(hook, done, signal.SIGTERM)) == 143
    run = tmp_path / "runs" / method / "version_0"
    at = done + (hook == "on_before_zero_grad")
    out = capsys.readouterr().out
    assert "SIGTERM: the run stops after this step. Ctrl-C again ends it at once." in out
    assert f"Stopped by SIGTERM, after step {at} of {steps_of(method)}.\nIts last checkpoint is {run}/" in out
    (go_on,) = [line.strip() for line in out.splitlines() if line.startswith("  lightning-uda fit ")]
    assert go_on.startswith(f"lightning-uda fit --config {config} ")
    assert go_on.endswith(" --ckpt_path last")
    assert read_checkpoint(run / "checkpoints/stopped.ckpt")["global_step"] == at
    main([*command, "--ckpt_path", "last"])
    assert [path.name for path in run.parent.glob("version_*")] == ["version_0"]
    again = read_checkpoint(run / "checkpoints/last.ckpt")
    assert again["state_dict"].keys() == last["state_dict"].keys()
    assert all(torch.equal(tensor, again["state_dict"][name]) for name, tensor in last["state_dict"].items())
    assert str(again["optimizer_states"]) == str(last["optimizer_states"])
    found, wanted = tables(run), tables(expected)
    del found["config"]["trainer"]["callbacks"], wanted["config"]["trainer"]["callbacks"]
    assert found == wanted


def test_a_signal_in_the_last_step_stops_nothing(tmp_path, capsys):
    main(["fit", "--config", config_of(tmp_path, "SourceOnly"), *signal_at("on_before_zero_grad", 3, signal.SIGINT)])
    run = tmp_path / "SourceOnly/version_0"
    assert [row["step"] for row in read_rows(run / "iou.csv")] == ["2", "4"]
    assert not (run / "checkpoints/stopped.ckpt").exists()
    assert "Stopped" not in capsys.readouterr().out


def test_a_run_whose_time_is_up_is_not_done_and_goes_on_with_more(tmp_path, capsys):
    command, run = ["fit", "--config", config_of(tmp_path, "SourceOnly")], tmp_path / "SourceOnly/version_0"
    command += ["--trainer.callbacks+=tests.fixtures.signals.TakesAnHour", "--trainer.max_time"]
    assert stopped(*command, "00:00:59:00") == TIME_IS_UP
    err = capsys.readouterr().err
    assert "trainer.max_time is up after step 3 of 4; it counts all parts" in err
    assert " --ckpt_path last --trainer.max_time TIME" in err
    assert [row["step"] for row in read_rows(run / "iou.csv")] == ["2", "3"]
    assert stopped(*command, "00:00:59:00", "--resume") == TIME_IS_UP
    main([*command, "00:02:00:00", "--resume"])
    assert [row["step"] for row in read_rows(run / "iou.csv")] == ["2", "3", "4"]


def test_steps_of_several_batches_are_finished(tmp_path):
    config = config_of(tmp_path, "SourceOnly", accumulate_grad_batches=2, val_check_interval=8)
    assert stopped("fit", "--config", config, *signal_at("on_before_zero_grad", 1, signal.SIGTERM)) == 143
    assert read_checkpoint(tmp_path / "SourceOnly/version_0/checkpoints/stopped.ckpt")["global_step"] == 2


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_each_signal_has_its_status(tmp_path, number, status):
    options = signal_at("on_before_zero_grad", 1, getattr(signal, number))
    before = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGUSR1")}
    assert stopped("fit", "--config", config_of(tmp_path, "SourceOnly"), *options) == status
    assert {name: signal.getsignal(getattr(signal, name)) for name in before} == before


@pytest.mark.slow
def test_where_nothing_is_to_be_saved_a_signal_ends_the_run_at_once(tmp_path, capsys):
    config = config_of(tmp_path, "SourceOnly")
    assert stopped("fit", "--config", config, *signal_at("on_train_start", 0, signal.SIGTERM)) == 143
    assert "It has saved no checkpoint; the same command starts anew." in capsys.readouterr().out
    assert stopped("fit", "--config", config, *signal_at("setup", 0, signal.SIGINT)) == 130
    main(["fit", "--config", config])
    for stage, hook in (("validate", "on_validation_batch_start"), ("predict", "on_predict_batch_start")):
        last = str(tmp_path / "SourceOnly/version_2/checkpoints/last.ckpt")
        for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            arguments = [stage, "--config", config, "--ckpt_path", last, *signal_at(hook, 0, number)]
            assert stopped(*arguments) == status


def test_a_run_without_checkpoints_stops_too(tmp_path, capsys):
    config = config_of(tmp_path, "SourceOnly", enable_checkpointing=False, callbacks=None)
    assert stopped("fit", "--config", config, *signal_at("on_before_zero_grad", 1, signal.SIGTERM)) == 143
    assert not list(tmp_path.rglob("*.ckpt"))
    assert "Stopped by SIGTERM, after step 2 of 4.\nIt has saved no checkpoint" in capsys.readouterr().out


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path):
    config = config_of(tmp_path, "SourceOnly")
    options = signal_at("on_before_zero_grad", 3, signal.SIGINT, signal.SIGINT, pause=0.6)
    result = run(main, ["fit", "--config", config, *options, "--trainer.max_steps", "8"])
    assert result.returncode == 130, result.stderr
    assert "Ended within a step.\nIts last checkpoint is " in result.stdout
    assert not list(tmp_path.rglob("stopped.ckpt"))


@pytest.mark.slow
def test_workers_live_on_when_the_whole_group_of_processes_is_told_to_stop(tmp_path):
    options = ["--data.num_workers", "2", *signal_at("on_before_zero_grad", 1, signal.SIGINT, group=True)]
    result = run(main, ["fit", "--config", config_of(tmp_path, "SourceOnly"), *options], process_group=True)
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert read_checkpoint(tmp_path / "SourceOnly/version_0/checkpoints/stopped.ckpt")["global_step"] == 2


def test_there_is_nothing_to_go_on_from(tmp_path):
    config = config_of(tmp_path, "SourceOnly")
    message = error_of("fit", "--config", config, "--ckpt_path", "last")
    assert f"{tmp_path}/SourceOnly: found no run to go on from. Leave out --resume and --ckpt_path" in message
    assert not (tmp_path / "SourceOnly").exists()
    (tmp_path / "SourceOnly/version_0").mkdir(parents=True)
    (tmp_path / "SourceOnly/version_0/notes.txt").touch()
    message = error_of("fit", "--config", config, "--resume")
    assert f"{tmp_path}/SourceOnly/version_0: found no whole checkpoint to go on from" in message


def test_the_newest_whole_checkpoint_of_the_latest_version_that_trained_is_taken(tmp_path, caplog):
    config = config_of(tmp_path, "SourceOnly")
    main(["fit", "--config", config])
    main(["validate", "--config", config, "--resume"])
    run = tmp_path / "SourceOnly/version_0"
    assert read_rows(run.with_name("version_1") / "iou.csv")[0]["step"] == "4"
    wanted = {name: (run / name).read_text() for name in ("metrics.csv", "iou.csv", "config.yaml")}
    confusions = sorted(path.name for path in run.glob("confusions/*"))
    damage(run / "checkpoints/last.ckpt", "flipped bit")
    main(["fit", "--config", config, "--resume"])
    assert f"{run}/checkpoints/last.ckpt is passed over: it isn't as it was written" in caplog.text
    assert f"going on from step 2: {run}/checkpoints/last.previous.ckpt" in caplog.text
    assert {name: (run / name).read_text() for name in wanted} == wanted
    assert sorted(path.name for path in run.glob("confusions/*")) == confusions
    assert not run.with_name("version_2").exists()


def test_a_finished_run_says_so_and_may_be_prolonged(tmp_path, caplog):
    config = config_of(tmp_path, "SourceOnly")
    main(["fit", "--config", config])
    run = tmp_path / "SourceOnly/version_0"
    before = (run / "metrics.csv").read_text()
    main(["fit", "--config", config, "--resume"])
    assert "the run is finished: " in caplog.text
    assert (run / "metrics.csv").read_text() == before
    main(["fit", "--config", config, "--resume", "--trainer.max_steps", "6"])
    assert [row["step"] for row in read_rows(run / "iou.csv")] == ["2", "4", "6"]
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    assert yaml.safe_load((run / "config.1.yaml").read_text())["trainer"]["max_steps"] == 4


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    config = config_of(tmp_path, "SourceOnly")
    main(["fit", "--config", config, "--trainer.max_steps", "2"])
    run = tmp_path / "SourceOnly/version_0"
    left = [run / "confusions/val_step_000004.csv.77.part", run / "checkpoints/last.ckpt.part", run / "iou.csv.77.part"]
    for path in left:
        path.touch()
    main(["fit", "--config", config, "--resume"])
    assert [path for path in left if path.exists()] == []
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 4


@pytest.mark.slow
def test_a_round_that_is_resumed_at_its_end_logs_the_same_steps(tmp_path):
    for name in ("whole", "cut"):
        config = config_of(tmp_path / name, "SelfTraining")
        first = ["--trainer.max_steps", "4"] if name == "cut" else []
        main(["fit", "--config", config, *first])
        if name == "cut":
            main(["fit", "--config", config, "--resume"])
    rows = [read_rows(tmp_path / name / "SelfTraining/version_0/metrics.csv") for name in ("whole", "cut")]
    steps = [[row["step"] for row in table if row["train/loss"] or row["val/miou"]] for table in rows]
    assert steps[0] == steps[1] == ["0", "1", "2", "3", "3", "4", "5", "6", "7", "7"]


def test_a_table_that_a_kill_left_aside_is_found(tmp_path):
    config = config_of(tmp_path, "SourceOnly")
    main(["fit", "--config", config])
    run = tmp_path / "SourceOnly/version_0"
    before = (run / "metrics.csv").read_text()
    (run / "metrics.csv").rename(run / "metrics.csv.part")
    main(["fit", "--config", config, "--resume"])
    assert (run / "metrics.csv").read_text() == before


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("metrics.csv", b"a,b\n1,2\n", "found no column 'step'"),
        ("metrics.csv", b"\xff", "found bytes that aren't text in UTF-8"),
        ("metrics.csv", b"step,loss\nx,1\n", "found 'x' as 'step' in row 1"),
        ("iou.csv", b"a\n1\n", "found no column 'step'"),
        ("iou.csv", b"\xff", "found bytes that aren't text in UTF-8"),
    ],
)
def test_a_damaged_table_is_named_and_nothing_taken_back(table, content, message, tmp_path):
    run = tmp_path / "a/version_0"
    (run / "confusions").mkdir(parents=True)
    (run / "confusions/val_step_000004.csv").touch()
    (run / table).write_bytes(content)
    with pytest.raises(ValueError, match=rf"version_0/{table}: {message}"):
        _ = RunLogger(str(tmp_path), "a", Found(run / "checkpoints/last.ckpt", 2)).experiment
    assert (run / "confusions/val_step_000004.csv").exists()
    assert (run / table).read_bytes() == content


def test_a_row_that_a_kill_left_half_written_is_not_kept(tmp_path):
    (tmp_path / "a/version_0").mkdir(parents=True)
    table = tmp_path / "a/version_0/metrics.csv"
    table.write_text("epoch,step,loss\n0,7,0.5\n0,1")  # of step 14
    _ = RunLogger(str(tmp_path), "a", Found(table.parent / "checkpoints/last.ckpt", 10)).experiment
    assert read_rows(table) == [{"epoch": "0", "step": "7", "loss": "0.5"}]


def killed(*_):
    raise KeyboardInterrupt


def test_adding_columns_never_empties_the_table(tmp_path, monkeypatch):
    logger = RunLogger(str(tmp_path), "a")
    logger.log_metrics({"loss": 0.5}, 1)
    logger.save()
    logger.log_metrics({"miou": 30.0}, 2)
    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.save()
    assert [row["loss"] for row in read_rows(tmp_path / "a/version_0/metrics.csv")] == ["0.5"]


def test_a_run_folder_that_cannot_be_made_is_said_in_a_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"--output: .*file/a can't be written, as .*file is no folder"):
        _ = RunLogger(str(tmp_path / "file"), "a").version


def start_runs(output, number):
    for _ in range(number):
        print(RunLogger(output, "a").version)


def test_runs_of_one_name_that_start_at_one_moment_get_a_folder_each(tmp_path):
    ended = run_together(3, start_runs, str(tmp_path), 20)
    taken = [int(version) for process in ended for version in process.stdout.split()]
    assert sorted(taken) == list(range(60)), ended[0].stderr


@pytest.mark.slow
def test_commands_that_start_at_one_moment_get_a_folder_each(tmp_path):
    config = config_of(tmp_path, "SourceOnly")
    ended = run_together(3, main, ["fit", "--config", config])
    assert [process.returncode for process in ended] == [0, 0, 0], ended[0].stderr
    said = [re.findall(r"in the run folder, .*/version_(\d)$", process.stderr, re.MULTILINE) for process in ended]
    assert sorted(said) == [["0"], ["1"], ["2"]]
    runs = [tmp_path / f"SourceOnly/version_{number}" for number in range(3)]
    assert len(list(tmp_path.glob("SourceOnly/*"))) == 3
    assert tables(runs[0]) == tables(runs[1]) == tables(runs[2])


def test_only_checkpoints_that_a_run_can_go_on_from_count(tmp_path):
    config = config_of(tmp_path, "SourceOnly")
    main(["fit", "--config", config, "--trainer.max_steps", "2"])
    run = tmp_path / "SourceOnly/version_0"
    weights = {name: value for name, value in content(90).items() if name != "optimizer_states"}
    write_checkpoint(weights, run / "checkpoints/weights.ckpt")
    main(["fit", "--config", config, "--resume"])
    assert [row["step"] for row in read_rows(run / "iou.csv")] == ["2", "4"]


def test_of_several_processes_all_stop_where_one_gets_a_signal_and_go_on(tmp_path):
    config = config_of(tmp_path, "DACS")
    command = ["fit", "--config", config, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    ended = run_ranks(2, main, [*command, *signal_at("on_before_zero_grad", 2, signal.SIGTERM, rank=1)])
    assert [rank.returncode for rank in ended] == [143, 143]
    assert "Stopped by SIGTERM, after step 3 of 4." in ended[0].stdout, ended[0].stderr
    checkpoints = tmp_path / "DACS/version_0/checkpoints"
    assert read_checkpoint(checkpoints / "stopped.ckpt")["global_step"] == 3
    ended = run_ranks(2, main, [*command, "--resume"])
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == 4
    assert [row["step"] for row in read_rows(checkpoints.parent / "iou.csv")] == ["2", "4"]


def faulty(config, *options):
    """What a run says that ends with an error of its data, and the error."""
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", config, *options])
    return end.value.code


@pytest.mark.parametrize(("hook", "done"), [("on_before_zero_grad", 1), ("on_validation_batch_start", 2)])
def test_a_run_whose_worker_died_says_why_and_goes_on_as_if_it_had_not(hook, done, whole, tmp_path, capsys):
    expected, last = whole("DACS")
    config = config_of(tmp_path / "runs", "DACS")
    options = ["--trainer.callbacks+=tests.fixtures.faults.KillWorker", f"--trainer.callbacks.hook={hook}"]
    error = faulty(config, "--data.num_workers", "2", *options, f"--trainer.callbacks.done={done}")
    assert re.fullmatch(
        r"error: A process of the data loader \(pid \d+\) was killed \(Killed\), as a rule because memory ran out"
        r"\. Lower data\.num_workers \(2 now, .*\.\n\(LIGHTNING_UDA_TRACEBACK=1 shows where it came from\.\)",
        error,
    )
    run = tmp_path / "runs/DACS/version_0"
    out = capsys.readouterr().out
    assert f"Stopped by its data, after step 2 of 4.\nIts last checkpoint is {run}/checkpoints/stopped.ckpt." in out
    assert read_checkpoint(run / "checkpoints/stopped.ckpt")["global_step"] == 2
    main(["fit", "--config", config, "--resume"])
    again = read_checkpoint(run / "checkpoints/last.ckpt")
    assert all(torch.equal(tensor, again["state_dict"][name]) for name, tensor in last["state_dict"].items())
    found, wanted = tables(run), tables(expected)
    del found["config"], wanted["config"]
    assert found == wanted


VANISHED = ["--data.source", "tests.fixtures.faults.Vanished", "--data.source.gone"]
GONE = "/set/images/tiny_0_{}.png: can't be read (No such file)."


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_an_image_that_is_gone_ends_a_run_by_its_name_after_a_checkpoint(num_workers, tmp_path, capsys):
    options = [*VANISHED, "0", "--trainer.max_steps", "9", "--data.batch_size", "1", "--data.num_workers", num_workers]
    error = faulty(config_of(tmp_path, "SourceOnly"), *options)
    assert error.startswith(f"error: {GONE.format(0)}\n(LIGHTNING_UDA")
    assert "Stopped by its data, after step 2 of 9." in capsys.readouterr().out  # the fourth image is read beside 3
    checkpoint = tmp_path / "SourceOnly/version_0/checkpoints/stopped.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == 2


def test_gradients_half_accumulated_are_not_saved(tmp_path, capsys):
    config = config_of(tmp_path, "SourceOnly", accumulate_grad_batches=2, val_check_interval=2)
    fifth = Stream("source", TinyDataset(8), TrainTransform(), 0, None).index(4)  # it is read beside the fourth
    faulty(config, *VANISHED, str(fifth), "--data.source.length", "8", "--data.batch_size", "1")
    checkpoints = tmp_path / "SourceOnly/version_0/checkpoints"
    said = f"Stopped by its data, after step 1 of 4.\nIts last checkpoint is {checkpoints}/last.ckpt."
    assert said in capsys.readouterr().out
    assert not (checkpoints / "stopped.ckpt").exists()


def test_images_that_are_gone_are_left_out_by_choice_counted_and_reported(tmp_path, caplog):
    options = [*VANISHED, "2", "--data.leave_out_unreadable", "true", "--data.num_workers", "2"]
    main(["fit", "--config", config_of(tmp_path, "SourceOnly"), *options])
    gone = GONE.format(2)
    note = f"left out of training: 2 samples, as 1 file couldn't be read: {gone} (2 times)"
    assert [line for line in caplog.messages if "left out" in line] == [f"left out of training: {gone}", note]
    assert note in (tmp_path / "SourceOnly/version_0/notes.txt").read_text().splitlines()


def test_two_starts_of_one_name_at_the_same_moment_get_a_folder_each(tmp_path):
    loggers = [RunLogger(str(tmp_path), "dacs") for _ in range(2)]
    (tmp_path / "dacs").mkdir()
    (tmp_path / "dacs/version_1").touch()
    assert [logger.version for logger in loggers] == [0, 2]
    assert [logger.version for logger in loggers] == [0, 2]


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_resumes_on_one_and_back(tmp_path):
    command = ["fit", "--config", config_of(tmp_path, "DACS"), "--resume", "--trainer.max_steps"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run_ranks(2, main, [*command[:3], *two, "--trainer.max_steps", "2"])
    main([*command, "4"])
    ended = run_ranks(2, main, [*command, "6", *two])
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr
    run = tmp_path / "DACS/version_0"
    assert [row["step"] for row in read_rows(run / "iou.csv")] == ["2", "4", "6"]
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 6
    assert len(list(run.parent.iterdir())) == 1


@pytest.mark.slow
def test_torchrun_starts_one_run_that_a_signal_stops_and_that_goes_on(tmp_path):
    """As an allocation that is over: SIGTERM comes to torchrun, which hands it on to the processes."""
    command = ["fit", "--config", config_of(tmp_path / "stopped", "DACS"), *ON_TWO]
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "-m", "lightning_uda"]
    signals = signal_at("on_before_zero_grad", 2, signal.SIGTERM, pause=2, starter=True)
    first = subprocess.run([*torchrun, *command, *signals], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert first.returncode != 0
    run = tmp_path / "stopped/DACS/version_0"
    assert "Stopped by SIGTERM, after step 3 of 4." in first.stdout, first.stderr
    assert "torchrun ... -m lightning_uda fit --config" in first.stdout
    assert read_checkpoint(run / "checkpoints/stopped.ckpt")["global_step"] == 3
    again = subprocess.run([*torchrun, *command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    ended = run_ranks(2, main, ["fit", "--config", config_of(tmp_path / "whole", "DACS"), *ON_TWO])
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].stderr
    folders = (run, tmp_path / "whole/DACS/version_0")
    went_on, whole = (read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"] for folder in folders)
    assert went_on.keys() == whole.keys()
    assert all(torch.equal(tensor, went_on[name]) for name, tensor in whole.items())
    found, wanted = (tables(folder) for folder in folders)
    del found["config"]["trainer"]["callbacks"], wanted["config"]["trainer"]["callbacks"]
    assert found == wanted


@pytest.mark.parametrize("dead", few_of([0, 1], 0))
def test_where_a_process_dies_the_others_end_with_a_message(dead, tmp_path):
    command = ["fit", "--config", config_of(tmp_path, "DACS"), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    ended = run_ranks(2, main, [*command, *signal_at("on_train_batch_start", 2, signal.SIGKILL, rank=dead)], timeout=60)
    other = ended[1 - dead]
    assert [ended[dead].returncode, other.returncode] == [-signal.SIGKILL, 1]
    assert "error: Another process of this run has ended, or can't be reached, " in other.stderr
    assert "Traceback" not in other.stderr
    last = f"{tmp_path}/DACS/version_0/checkpoints/last.ckpt"
    said = f"Stopped in the step after step 2 of 4.\nIts last checkpoint is {last}. It goes on by\n"
    assert (said in other.stdout) == (dead == 1)
