"""A wheel of the package, installed elsewhere, brings the configs and trains; so does an editable install."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lightning_uda.config_files import short_names

ROOT = Path(__file__).parents[1]
PARTS = ("lightning_uda", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["wheel", "editable"])
def program(request, tmp_path):
    """`lightning-uda` in an environment that sees the packages of this one, but not its install of this package."""
    source, venv = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin/python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    Path(packages, "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = (*PIP, "--python", python, "install", "--no-deps", "--no-index", "--no-build-isolation")
    if request.param == "wheel":
        run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source, cwd=tmp_path)
        (wheel,) = tmp_path.glob("*.whl")
        run(*install, wheel, cwd=tmp_path)
        shutil.rmtree(source)
    else:
        run(*install, "--editable", source, cwd=tmp_path)
    return venv / "bin/lightning-uda"


@pytest.mark.slow
def test_an_installed_package_lists_its_configs_and_trains_a_step_from_another_folder(program, tmp_path):
    place = tmp_path / "elsewhere"
    place.mkdir()
    python = program.with_name("python")
    where = Path(run(python, "-c", "import lightning_uda; print(lightning_uda.__file__)", cwd=place).strip())
    assert where.is_relative_to(tmp_path)
    listed = [line.split()[0] for line in run(program, "configs", cwd=place).splitlines() if line.startswith("  ")]
    assert set(listed) == set(short_names())
    run(program, "configs", "copy", "minicity/dacs", "my.yaml", cwd=place)
    few = [f"--data.{name}.{key}" for name in ("source", "target", "val") for key in ("length=4", "size=[32, 64]")]
    few += ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--data.num_workers=0"]
    for config, version in (("minicity/dacs", 0), ("my.yaml", 1)):
        run(program, "fit", "--config", config, *few, cwd=place)
        assert (place / f"runs/minicity/dacs/version_{version}/checkpoints/last.ckpt").is_file()
    run(program, "report", "runs/minicity/dacs", cwd=place)
    assert "DACS" in (place / "runs/report.html").read_text(encoding="utf-8")
