"""Every command of the README runs: the long ones with a few steps on small images."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from lightning_uda.__main__ import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
SHORT = ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--data.num_workers", "0"]
SMALL = ["--data.batch_size", "2", *[f"--data.{name}.size=[32, 64]" for name in ("source", "target", "val")]]
SMALL += [f"--data.{name}.length=4" for name in ("source", "target", "val")]
FOLDERS = ["--model.network.backbone", "resnet10t", "--model.network.pretrained", "false"]
FOLDERS += ["--data.source_transform.crop", "[32, 32]", "--data.target_transform.crop", "[32, 32]"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the configs and the three folders of images that the README describes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    for name in ("source", "target", "val"):
        for kind, suffix in (("images", "jpg"), ("labels", "png")):
            if (name, kind) == ("target", "labels"):
                continue
            (tmp_path / name / kind).mkdir(parents=True)
            for i in range(4):
                shape = (40, 48, 3) if kind == "images" else (40, 48)
                pixels = rng.integers(0, 256 if kind == "images" else 2, shape, np.uint8)
                cv2.imwrite(str(tmp_path / name / kind / f"{i}.{suffix}"), pixels)
        (tmp_path / name / "classes.json").write_text(json.dumps({"ids": {"0": "road", "1": "sky"}, "ignore": 255}))
    (tmp_path / "classes.yaml").write_text("classes: [road, sky]\n")
    return tmp_path


def run(command):
    program, *arguments = shlex.split(command)
    assert program == "lightning-uda"
    if arguments[0] == "fit":
        arguments += SHORT
        arguments += FOLDERS if "folders" in command else SMALL
    if arguments[0] == "data":
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert not end.value.code, f"{command}: {end.value.code}"
    else:
        main(arguments)


def test_lightning_uda_commands_run_in_the_order_of_the_readme(workplace):
    commands = [command for command in COMMANDS if command.startswith("lightning-uda")]
    assert {command.split()[1] for command in commands} == {"data", "fit", "validate", "predict", "report"}
    for command in commands:
        run(command)
    assert len(list((workplace / "predictions/overlay").glob("*.png"))) == 4
    assert "DACS" in (workplace / "runs/report.html").read_text()


def test_make_commands_are_targets():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = {command for command in COMMANDS if command.startswith("make")}
    assert commands == {"make demo", "make test"}
    assert {command.split()[1] for command in commands} <= targets
    assert set(COMMANDS) == commands | {command for command in COMMANDS if command.startswith("lightning-uda")}


def test_the_demo_runs_with_few_steps(workplace, capsys):
    recipe = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [line.split("/")[-1] if " " not in line else line for line in recipe.splitlines()]
    demo = [re.sub(r"^\S*lightning-uda", "lightning-uda", line) for line in commands if "lightning-uda " in line]
    assert [command.split()[1] for command in demo] == ["fit", "fit", "report"]
    for command in demo:
        run(command)
    assert capsys.readouterr().out.rstrip().endswith("runs/demo/report.html")


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_demo_as_a_visitor_runs_it(tmp_path):
    """`make demo` in full (ten minutes or more), from a clone."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    (tmp_path / "clone/.venv").symlink_to(ROOT / ".venv")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "clone")}
    make = ["make", "-o", ".venv/.ready", "demo"]  # with this environment, whatever its age
    result = subprocess.run(make, cwd=tmp_path / "clone", env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.rstrip().endswith("runs/demo/report.html")
    gain = re.search(r"mIoU +([\d.]+) +([\d.]+) +\+([\d.]+)", result.stdout)
    assert gain
    assert float(gain[3]) > 0
