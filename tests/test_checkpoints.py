"""Checkpoints outlive kills, full disks and damage; reading them runs no code of theirs."""

import functools
import http.server
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
import yaml

from lightning_uda import checkpoints
from lightning_uda.__main__ import main
from lightning_uda.checkpoints import (
    CheckpointError,
    damage_of,
    newest_checkpoint,
    previous_of,
    read_checkpoint,
    require_checkpoint,
    write_checkpoint,
)
from lightning_uda.methods import SourceOnly
from lightning_uda.optim import require_state_fits
from lightning_uda.resuming import CheckpointFiles, require_file, restoring
from tests.fixtures.checkpoints import content
from tests.fixtures.stages import write_config
from tests.fixtures.tiny import TinyNetwork

ROOT = Path(__file__).parents[1]


@pytest.fixture
def last(tmp_path):
    """`last.ckpt` of step 2, and the one before, of step 1."""
    path = tmp_path / "checkpoints/last.ckpt"
    write_checkpoint(content(1), path)
    write_checkpoint(content(2), path)
    return path


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "cut short":
        del data[len(data) // 2 :]
    elif kind == "empty":
        data.clear()
    elif kind == "zeroed block":
        data[2048:4096] = bytes(2048)
    else:
        data[len(data) // 3] ^= 4
    path.write_bytes(data)


def test_the_generation_before_is_kept(last):
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    assert [read_checkpoint(path)["global_step"] for path in (last, previous_of(last))] == [2, 1]
    write_checkpoint(content(3), last)
    assert [read_checkpoint(path)["global_step"] for path in (last, previous_of(last))] == [3, 2]
    assert require_checkpoint(last) == newest_checkpoint(last.parent) == (last, 3)
    for read in (torch.load(last, weights_only=True, mmap=True), torch.load(last.open("rb"), weights_only=True)):
        assert torch.equal(read["state_dict"]["w0"], content(3)["state_dict"]["w0"]), "torch reads it as its own"


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path, last):
    data, changed = last.read_bytes(), tmp_path / "changed.ckpt"
    chosen = random.Random(0)
    positions = [*chosen.sample(range(len(data)), 150), *range(len(data) - 60, len(data))]
    noticed = 0
    for position in positions:
        flipped = bytearray(data)
        flipped[position] ^= 1 << chosen.randrange(8)
        changed.write_bytes(flipped)
        if damage_of(changed):
            noticed += 1
        else:
            read = read_checkpoint(changed)
            assert read["global_step"] == 2
            assert all(torch.equal(tensor, content(2)["state_dict"][k]) for k, tensor in read["state_dict"].items())
    assert noticed >= len(positions) - len(checkpoints._MARK)


@pytest.mark.parametrize("kind", ["cut short", "empty", "zeroed block", "flipped bit"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(last, kind, caplog):
    damage(last, kind)
    assert newest_checkpoint(last.parent) == (previous_of(last), 1)
    assert f"{last} is passed over: it is" in caplog.text
    with pytest.raises(CheckpointError, match=rf"{last}: can't be read as a checkpoint: it is") as error:
        read_checkpoint(last)
    assert f"The one before is whole: {previous_of(last)}." in str(error.value)
    damage(previous_of(last), kind)
    assert newest_checkpoint(last.parent) is None


def test_a_file_without_checksum_is_compared_with_those_of_its_members(tmp_path):
    path = tmp_path / "plain.ckpt"
    torch.save(content(5), path)
    assert read_checkpoint(path)["global_step"] == 5
    damage(path, "zeroed block")
    assert "the checksum of plain/" in damage_of(path)


def test_the_newest_is_that_of_the_highest_step_that_a_run_can_go_on_from(last):
    folder = last.parent
    write_checkpoint(content(40), folder / "best.ckpt")
    assert newest_checkpoint(folder) == (folder / "best.ckpt", 40)
    weights = {name: value for name, value in content(50).items() if name != "optimizer_states"}
    write_checkpoint(weights, folder / "weights.ckpt")
    os.utime(last, (2e9, 2e9))
    assert newest_checkpoint(folder) == (folder / "best.ckpt", 40)
    assert newest_checkpoint(folder / "nowhere") is None


def test_it_is_on_disk_before_it_takes_its_place(last, monkeypatch):
    events = []

    def note(name, function, path_of):
        def noted(*args):
            events.append((name, path_of(args[0])))
            return function(*args)

        return noted

    monkeypatch.setattr(
        os, "fsync", note("flush", os.fsync, lambda number: Path(os.readlink(f"/proc/self/fd/{number}")))
    )
    monkeypatch.setattr(Path, "replace", note("rename", Path.replace, lambda path: path))
    write_checkpoint(content(3), last)
    partial = last.with_name("last.ckpt.part")
    assert events == [("flush", partial), ("rename", last), ("rename", partial), ("flush", last.parent)]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from lightning_uda.checkpoints import write_checkpoint
from tests.fixtures.checkpoints import content
where, path = sys.argv[1], Path(sys.argv[2])
def kill(): os.kill(os.getpid(), signal.SIGKILL)
save, replace, renamed = torch.save, Path.replace, []
def half(content, file):
    save(content, file)
    file.truncate(file.tell() // 2)
    file.flush()
    kill()
def rename(self, target):
    replace(self, target)
    renamed.append(target)
    if len(renamed) == int(where):
        kill()
if where == "writing":
    torch.save = half
else:
    Path.replace = rename
write_checkpoint(content(3), path)
"""


@pytest.mark.parametrize(
    ("where", "left"), [("writing", ("last.ckpt", 2)), ("1", ("last.previous.ckpt", 2)), ("2", ("last.ckpt", 3))]
)
def test_a_kill_at_any_moment_leaves_a_whole_one(last, where, left):
    result = subprocess.run([sys.executable, "-c", KILLED, where, last], cwd=ROOT, timeout=120)
    assert result.returncode == -signal.SIGKILL
    assert newest_checkpoint(last.parent) == (last.with_name(left[0]), left[1])
    write_checkpoint(content(4), last)
    assert not list(last.parent.glob("*.part")), "what the kill left is gone"
    assert newest_checkpoint(last.parent) == (last, 4)


FULL = """
import resource, signal, sys
from pathlib import Path
from lightning_uda.checkpoints import write_checkpoint
from tests.fixtures.checkpoints import content
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_checkpoint(content(3), Path(sys.argv[1]))
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_one_whole(last):
    result = subprocess.run([sys.executable, "-c", FULL, last], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert f"{last}: the checkpoint can't be written ([Errno 27] File too large); " in result.stdout, result.stderr
    assert f"Make room, or give another --output. The one before, {last}, is whole." in result.stdout
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    assert [read_checkpoint(path)["global_step"] for path in (last, previous_of(last))] == [2, 1]


def test_the_temporary_folder_is_not_needed(last, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    for name in ("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, full)
    CheckpointFiles().save_checkpoint(content(3, callbacks={}), str(last))
    assert newest_checkpoint(last.parent) == (last, 3)


def test_weights_alone_are_not_written_where_they_are_not_finite(last):
    weights = {"state_dict": {"student.w": torch.tensor([1.0, torch.nan]), "other.w": torch.tensor(torch.inf)}}
    with pytest.raises(FloatingPointError, match=r"last.ckpt: not written, as weights are not finite: student\.w\. "):
        CheckpointFiles().save_checkpoint({**content(3), **weights}, last)
    assert newest_checkpoint(last.parent) == (last, 2)


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that is served, and its address."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def keeping_last(folder, method="SourceOnly"):
    """The config of a run that keeps `last.ckpt` at every step."""
    path = Path(write_config(folder, method))
    config = yaml.safe_load(path.read_text())
    keep = {"filename": "last", "enable_version_counter": False, "every_n_train_steps": 1}
    config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": keep}]
    path.write_text(yaml.safe_dump(config))
    return str(path)


def error_of(*arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return str(end.value.code)


def test_no_code_runs_whatever_the_address(served, tmp_path, capsys):
    folder, address = served
    config, trap = keeping_last(tmp_path), tmp_path / "trap"
    torch.save(content(2, trap=Runs(str(trap))), folder / "evil.ckpt")
    for stage in ("fit", "validate", "test", "predict"):
        for place in (f"{address}/evil.ckpt", str(folder / "evil.ckpt")):
            message = error_of(stage, "--config", config, "--ckpt_path", place)
            assert f"{place}: can't be read as a checkpoint (UnpicklingError: it needs the code of" in message
    assert not trap.exists()
    assert "weights_only: found false" in error_of("validate", "--config", config, "--weights_only", "false")
    assert not trap.exists()


def test_a_good_checkpoint_is_read_from_an_address(served, tmp_path, capsys):
    folder, address = served
    config = keeping_last(tmp_path)
    main(["fit", "--config", config])
    kept = tmp_path / "SourceOnly/version_0/checkpoints/last.ckpt"
    kept.rename(folder / "last.ckpt")
    main(["validate", "--config", config, "--ckpt_path", f"{address}/last.ckpt"])
    read = [(tmp_path / f"SourceOnly/version_{n}/iou.csv").read_text() for n in (0, 1)]
    assert read[0] == read[1]


def test_a_run_goes_on_from_the_one_before_a_damaged_one(tmp_path, capsys, caplog):
    config = keeping_last(tmp_path)
    main(["fit", "--config", config])
    last = tmp_path / "SourceOnly/version_0/checkpoints/last.ckpt"
    whole = read_checkpoint(last)
    damage(last, "flipped bit")
    message = error_of("validate", "--config", config, "--ckpt_path", str(last))
    assert f"The one before is whole: {previous_of(last)}." in message
    main(["fit", "--config", config, "--ckpt_path", str(last)])
    assert f"The one before is whole: {previous_of(last)}. It is used, of step 3." in caplog.text
    again = read_checkpoint(tmp_path / "SourceOnly/version_1/checkpoints/last.ckpt")
    assert again["global_step"] == 4
    assert all(torch.equal(tensor, again["state_dict"][name]) for name, tensor in whole["state_dict"].items())


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("state_dict", None, "null"),
        ("state_dict", "x", "'x'"),
        ("state_dict", {"w": "x"}, "{'w': 'x'}"),
        *[("global_step", value, str(value)) for value in (-5, float("nan"), 2.0, True)],
        ("global_step", "x", "'x'"),
        ("global_step", None, "null"),
        ("pytorch-lightning_version", "x", "'x'"),
        ("loops", 3, "3"),
        ("loops", {"fit_loop": 3}, "{'fit_loop': 3}"),
        ("callbacks", 3, "3"),
    ],
)
def test_what_is_no_content_of_a_checkpoint_is_named(tmp_path, name, value, found, caplog):
    path = tmp_path / "wrong.ckpt"
    write_checkpoint(content(1, **{name: value}), path)
    message = f"{path}: no checkpoint of a run: found {name}: {found}, expected "
    for read in (require_checkpoint, read_checkpoint):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read(path)
    assert newest_checkpoint(tmp_path) is None
    assert f"{path} is passed over: no checkpoint of a run: found {name}" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loops", {}),
        ("optimizer_states", 3),
        ("optimizer_states", [3]),
        ("optimizer_states", [{"state": {0: 3}, "param_groups": []}]),
        ("optimizer_states", [{"state": {}, "param_groups": [{"lr": 0.1}]}]),
        ("lr_schedulers", None),
    ],
)
def test_what_no_run_can_go_on_from_is_named(tmp_path, name, value):
    path = tmp_path / "wrong.ckpt"
    write_checkpoint(content(1, **{name: value}), path)
    assert require_checkpoint(path).step == 1
    with pytest.raises(CheckpointError, match=rf"{path}: no checkpoint of a run: found {name}: "):
        require_checkpoint(path, to_resume=True)
    assert newest_checkpoint(tmp_path) is None
    write_checkpoint({key: value for key, value in content(1).items() if key != name}, path)
    with pytest.raises(CheckpointError, match=rf"holds weights alone \(it lacks \['{name}'\]\)"):
        require_checkpoint(path, to_resume=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The config of a run of two steps, and its last checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    config = keeping_last(folder)
    main(["fit", "--config", config, "--trainer.max_steps", "2"])
    return config, folder / "SourceOnly/version_0/checkpoints/last.ckpt"


def with_nan(state):
    state["state"][3]["momentum_buffer"].view(-1)[0] = torch.nan


def with_infinite_rate(state):
    state["param_groups"][1]["lr"] = float("inf")


def with_other_shape(state):
    state["state"][3]["momentum_buffer"] = torch.zeros(1, 2)


def with_fewer_groups(state):
    state["param_groups"].pop()


def with_fewer_weights(state):
    state["param_groups"][0]["params"].pop()


def with_other_decay(state):
    state["param_groups"][1]["weight_decay"] = 0.5


def with_other_rate(state):
    state["param_groups"][0]["initial_lr"] = 0.5


NOT_ITS_OWN = "its optimiser isn't the SGD of this run: "


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_nan, "optimizer_states.0.state.3.momentum_buffer isn't finite"),
        (with_infinite_rate, "optimizer_states.0.param_groups.1.lr isn't finite"),
        (with_other_shape, f"{NOT_ITS_OWN}momentum_buffer of weight 3 has the shape (1, 2), expected "),
        (with_fewer_groups, f"{NOT_ITS_OWN}loaded state dict has a different number of parameter groups"),
        (with_other_decay, f"{NOT_ITS_OWN}weight_decay of group 1 is 0.5, expected "),
        (with_other_rate, f"{NOT_ITS_OWN}lr of group 0 is 0.5, expected "),
        (with_fewer_weights, f"{NOT_ITS_OWN}loaded state dict contains a parameter group that doesn't match"),
    ],
)
def test_a_state_that_no_optimiser_of_the_run_can_go_on_from_is_refused(trained, change, said):
    method = SourceOnly(network=TinyNetwork(11), label_space="camvid")
    changed = read_checkpoint(trained[1])
    method.require_fits(changed, "it", to_resume=True)
    change(changed["optimizer_states"][0])
    method.require_fits(changed, "it")
    with pytest.raises(CheckpointError, match=re.escape(f"it: {said}")):
        method.require_fits(changed, "it", to_resume=True)


def test_adam_does_not_go_on_as_adamw_unnoticed():
    weights = [torch.nn.Parameter(torch.ones(2))]
    state = {"optimizer_states": [torch.optim.AdamW(weights, weight_decay=0.01).state_dict()]}
    require_state_fits(torch.optim.AdamW(weights, weight_decay=0.01), state, "it")
    said = "it: its optimiser isn't the Adam of this run: decoupled_weight_decay of group 0 is 1, expected 0"
    with pytest.raises(CheckpointError, match=re.escape(said)):
        require_state_fits(torch.optim.Adam(weights, weight_decay=0.01), state, "it")


def test_another_optimiser_or_weights_alone_are_refused_before_a_run_has_a_folder(trained, tmp_path):
    config, last = trained
    weights = tmp_path / "weights.ckpt"
    write_checkpoint({k: v for k, v in read_checkpoint(last).items() if k != "optimizer_states"}, weights)
    adam = ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-3"]
    for path, options, said in (
        (last, adam, "its optimiser isn't the AdamW of this run: its groups have ["),
        (weights, [], "no run can go on from it, as it holds weights alone (it lacks ['optimizer_states'])"),
    ):
        command = ["fit", "--config", config, "--output", str(tmp_path / "runs"), "--ckpt_path", str(path), *options]
        assert error_of(*command).startswith(f"error: {path}: {said}")
    assert not (tmp_path / "runs").exists()


def test_what_fails_while_lightning_restores_a_run_names_the_checkpoint(trained, tmp_path):
    config, last = trained
    path = tmp_path / "changed.ckpt"
    write_checkpoint({**read_checkpoint(last), "callbacks": {"IoUTable": {"other": 1}}}, path)
    message = error_of("fit", "--config", config, "--output", str(tmp_path), "--ckpt_path", str(path))
    assert message.startswith(f"error: {path}: this run can't go on from it: KeyError: ")
    assert "Config and checkpoint differ" in message


def test_only_errors_of_restoring_name_the_checkpoint():
    with pytest.raises(KeyError), restoring("last.ckpt"):
        raise KeyError("of training")


@pytest.mark.parametrize("given", ["nope.ckpt", "", "registry", "best", "/dev/null"])
def test_what_is_no_file_is_refused(given):
    with pytest.raises(
        FileNotFoundError, match=f"--ckpt_path: found no file {given or repr('')}; expected a checkpoint"
    ):
        require_file(given)


def test_of_a_folder_the_newest_checkpoint_is_named(last):
    for folder in (last.parent, last.parent.parent):
        with pytest.raises(FileNotFoundError, match=f"found no file {folder}; expected .* such as {last}"):
            require_file(str(folder))


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_that_is_not_there_is_refused_before_a_run_has_a_folder(tmp_path, command):
    options = ["--config", write_config(tmp_path, "SourceOnly"), "--ckpt_path", "nope.ckpt"]
    assert error_of(command, *options).startswith("error: --ckpt_path: found no file nope.ckpt; expected a checkpoint")
    assert not (tmp_path / "SourceOnly").exists()
