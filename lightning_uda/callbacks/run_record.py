"""What was run: versions, state of the code, sizes of the data sets, the classes and their colours, in the folder."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback

from lightning_uda.files import LABEL_SPACE_FILE, RECORD_FILE, free_name, replace_file

_PACKAGES = ("lightning-uda", "torch", "torchvision", "lightning", "torchmetrics", "timm", "numpy")


class RunRecord(Callback):
    """Writes `label_space.yaml` and `run.yaml` into the run folder, which its report reads.

    The first holds the classes with the colours that the run's pictures have. The second holds `versions` of Python and
    of the packages that results depend on, `git`, the commit of the working folder and whether files differ from it
    (left out where there is no git), and `data`, the number of images of each set. Where a run goes on in its folder
    and something has changed, the file of before is kept as `run.1.yaml`.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the files, once all is set up, so that a run that is refused leaves none."""
        folder = trainer.log_dir if trainer.loggers else None  # all ranks have to ask together
        if folder is None or not trainer.is_global_zero:
            return
        if (space := getattr(pl_module, "label_space", None)) is not None:
            _write(Path(folder) / LABEL_SPACE_FILE, space.as_yaml())
        sets = getattr(getattr(trainer, "datamodule", None), "datasets", {})
        record = {
            "versions": versions_of_packages(),
            "git": git_state(Path.cwd()),
            "data": {name: len(dataset) for name, dataset in sets.items() if name != "predict"},
        }
        known = {key: value for key, value in record.items() if value}
        _write(Path(folder) / RECORD_FILE, yaml.safe_dump(known, sort_keys=False))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the files, unless training has."""
        if trainer.state.fn == "validate":
            self.on_fit_start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes the files."""
        self.on_fit_start(trainer, pl_module)


def versions_of_packages() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> str:
    """Commit of the repository that a folder is in, such as "1a2b3c4d5e6f, 2 files changed"; empty without one."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True, errors="replace"
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = len(git("status", "--porcelain", "--untracked-files=no").splitlines())
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}, {changed} file{'s' * (changed != 1)} changed" if changed else commit


def _write(path: Path, text: str) -> None:
    if path.is_file():
        if path.read_text(encoding="utf-8", errors="replace") == text:
            return
        path.rename(free_name(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
