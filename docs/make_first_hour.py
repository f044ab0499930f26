"""Records docs/first_hour.md, what a newcomer types and sees: `python docs/make_first_hour.py`, ten to thirty minutes.

In an empty folder: a wheel of the checkout is installed into an empty environment, folders of drawn images stand in for
the newcomer's own, and every command after that is run as it stands on the page, with what it printed and its time.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("first_hour.md")
FOLDERS = """
import json, pathlib, cv2
from lightning_uda.datasets import MiniCity
from lightning_uda.label_spaces import get_label_space

classes = get_label_space("cityscapes").classes
SETS = (("source", "source", "train", 300), ("target", "target", "train", 200), ("val", "target", "val", 60))
for name, style, split, length in SETS:
    scenes = MiniCity(style=style, split=split, length=length, size=(96, 192))
    for kind in ("images", "labels") if name != "target" else ("images",):
        pathlib.Path(name, kind).mkdir(parents=True)
    for index in range(length):
        image = cv2.cvtColor(scenes.load_image(index), cv2.COLOR_RGB2BGR)
        cv2.imwrite(f"{name}/images/{index:04d}.jpg", image)
        if name != "target":
            cv2.imwrite(f"{name}/labels/{index:04d}.png", scenes.load_label(index))
    if name != "target":
        ids = {str(number): one for number, one in enumerate(classes)}
        pathlib.Path(name, "classes.json").write_text(json.dumps({"ids": ids, "ignore": 255}))
pathlib.Path("classes.yaml").write_text(f"classes: [{', '.join(classes)}]")
"""
DATA = "--data.label_space classes.yaml --data.source.root source --data.target.root target --data.val.root val"
SMALL = (
    "--model.network network/deeplab_v2_resnet18 --data.num_workers 1 --data.source_transform.crop null "
    "--data.target_transform.crop null --trainer.max_steps 300 --trainer.val_check_interval 100"
)
STEPS = (
    ("Is it there, and what can it train?", ("lightning-uda --version", "lightning-uda configs folders")),
    ("Are the folders in order?", (f"lightning-uda data check --config folders/dacs {DATA}",)),
    (
        "Train on the source alone, then adapt: a network and a number of steps for a machine without a GPU.",
        (
            f"lightning-uda fit --config folders/source_only {DATA} {SMALL}",
            f"lightning-uda fit --config folders/dacs {DATA} {SMALL}",
        ),
    ),
    (
        "What did it gain?",
        ("lightning-uda report runs/folders/source_only runs/folders/dacs --output runs/report.html",),
    ),
    (
        "Label new images.",
        ("lightning-uda predict --ckpt_path runs/folders/dacs --images target/images --output predictions",),
    ),
)
INTRODUCTION = (
    "What a newcomer types and sees, from an empty environment to labels for new images. Recorded by `python "
    "docs/make_first_hour.py` on two CPU cores without a GPU; the folders were made of MiniCity's scenes: 300 "
    "labelled source images, 200 target images without labels, 60 labelled ones to score, 96 x 192. With a GPU, "
    "leave out the options from `--model.network` on: the configs' own values are for real frames."
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def timed(command: str, place: Path, environment: Mapping[str, str]) -> tuple[str, float]:
    """Runs a command in a folder; gives what it printed and its seconds.

    Raises:
        SystemExit: If it fails.
    """
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, shell=True
    )
    if done.returncode:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout, time.monotonic() - start


def shown(text: str, place: Path) -> str:
    """What a terminal would show of an output in the end: the last state of lines that were written over."""
    lines = [line.split("\r")[-1].rstrip() for line in _ESCAPES.sub("", text.replace("\r\n", "\n")).split("\n")]
    kept = [line.replace(str(place), "~/driving") for line in lines]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")


def clock(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def main() -> None:
    """Installs, runs the steps, writes the page."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bare = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment = bare | {"COLUMNS": "110", "PATH": f"{place / 'env/bin'}:{bare['PATH']}"}
        build = f"{sys.executable} -m pip wheel -q --no-deps --no-build-isolation --wheel-dir {place} {ROOT}"
        timed(build, place, bare)
        shutil.rmtree(ROOT / "build", ignore_errors=True)
        timed(f"{sys.executable} -m venv env", place, bare)
        wheel = next(place.glob("*.whl")).name
        install = f"pip install {wheel}"
        seconds = timed(f"{install} -q --disable-pip-version-check -c {ROOT / 'constraints.txt'}", place, environment)[
            1
        ]
        (place / "make_folders.py").write_text(FOLDERS)
        timed("python make_folders.py", place, environment)
        page = [
            "# The first hour",
            "",
            textwrap.fill(INTRODUCTION, 120),
            "",
            "## Install",
            "",
            f"```\n{install}\n```",
            "",
            f"{clock(seconds)}, downloads included.",
            "",
        ]
        for title, commands in STEPS:
            page += [f"## {title}", ""]
            for command in commands:
                printed, seconds = timed(command, place, environment)
                page += [
                    f"```\n{command}\n```",
                    "",
                    f"```text\n{shown(printed, place)}\n```",
                    "",
                    f"{clock(seconds)}.",
                    "",
                ]
                print(f"{clock(seconds)}: {command}", flush=True)
        PAGE.write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
