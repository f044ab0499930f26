"""What a run folder holds."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_uda.label_spaces import LABEL_SPACES, LabelSpace, get_label_space
from lightning_uda.metrics import scored_size

FILES = ("metrics.csv", "iou.csv")


class ReportError(ValueError):
    """A report can't be made of these runs; the message names the folder and the fix."""


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        folder: The folder with `metrics.csv` and `iou.csv`.
        title: Short name for headings, distinct among the runs of a report.
        config: Content of `config.yaml`; empty if there is none.
        metrics: Rows of `metrics.csv`.
        evaluations: Rows of `iou.csv` of one stage, one for each step, ascending.
    """

    folder: Path
    title: str
    config: dict[str, Any]
    metrics: list[dict[str, str]]
    evaluations: list[dict[str, str]]

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of train ids."""
        columns = [column for column in self.evaluations[-1] if column.startswith("iou_")]
        return [column.removeprefix("iou_") for column in columns if scored_size(column) is None]

    @property
    def means(self) -> list[str]:
        """Columns of mean IoUs: `miou` and `miou_<subset>`, and these with `_at_<size>`."""
        return [column for column in self.evaluations[-1] if column.startswith("miou")]

    @property
    def last_step(self) -> int:
        """The step that the run got to."""
        logged = [int(row["step"]) + 1 for row in self.metrics if row.get("step")]
        return max([*logged, int(self.evaluations[-1]["step"])])

    @property
    def max_steps(self) -> int | None:
        """The step that the run was to end at, if its config says so."""
        steps = self.config.get("trainer", {}).get("max_steps")
        if isinstance(steps, int) and steps > 0:
            return steps
        planned = self.curve("rounds/steps")[1]  # of self-training
        return int(planned[-1]) if planned else None

    @property
    def finished(self) -> bool:
        """Whether the run got to its last step, as far as logged metrics can tell."""
        if self.max_steps is None:
            return True
        interval = self.config["trainer"].get("log_every_n_steps") or 50
        return self.last_step + int(interval) > self.max_steps

    def value(self, column: str) -> float | None:
        """A column of the last evaluation, in percent."""
        return number_of(self.evaluations[-1].get(column))

    def curve(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of `metrics.csv`, where it has any."""
        points = [(int(row["step"]), number_of(row.get(column))) for row in self.metrics if row.get("step")]
        found = [(step, value) for step, value in points if value is not None]
        return [step for step, _ in found], [value for _, value in found]


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads run folders and checks that they can be compared.

    Raises:
        ReportError: If a folder holds no finished evaluation, or the runs have different classes.
    """
    if not folders:
        raise ReportError("Found no run folder; give at least one, such as runs/demo/dacs.")
    runs = [_load_run(Path(folder)) for folder in folders]
    for run in runs[1:]:
        if run.classes != runs[0].classes:
            raise ReportError(
                f"The runs have different label spaces: {runs[0].folder} has {len(runs[0].classes)} classes, "
                f"{run.folder} has {len(run.classes)}; they differ in "
                f"{sorted(set(runs[0].classes) ^ set(run.classes)) or 'their order'}. Report them separately."
            )
    titles = [run.title for run in runs]
    for run, title in zip(runs, titles, strict=True):
        if titles.count(title) > 1:
            run.title = f"{title} ({run.folder.parent.name}/{run.folder.name})"
    return runs


def _load_run(folder: Path) -> Run:
    version = _version_folder(folder)
    config_file = version / "config.yaml"
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    rows = _read_csv(version / "iou.csv")
    stage = "val" if any(row["stage"] == "val" for row in rows) else "test"
    evaluations = {int(row["step"]): row for row in rows if row["stage"] == stage}
    if not evaluations:
        raise ReportError(f"{version / 'iou.csv'} holds no evaluation; let the run reach its first validation.")
    return Run(
        folder=version,
        title=_title(version, config),
        config=config,
        metrics=_read_csv(version / "metrics.csv"),
        evaluations=[evaluations[step] for step in sorted(evaluations)],
    )


def _version_folder(folder: Path) -> Path:
    """The folder itself if it is one of a run, else the latest version in it that trained."""
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder; expected a run folder, such as runs/demo/dacs.")
    versions = sorted(
        (path for path in folder.glob("version_*") if path.name[8:].isdigit()), key=lambda path: int(path.name[8:])
    )
    complete = [path for path in versions or [folder] if all((path / name).is_file() for name in FILES)]
    if not complete:
        latest = versions[-1] if versions else folder
        missing = [name for name in FILES if not (latest / name).is_file()]
        raise ReportError(
            f"Run folder {latest} holds no {' and no '.join(missing)}; expected both metrics.csv and iou.csv, which a "
            "run writes at its first validation. Let the run go on, or give another folder."
        )
    trained = [path for path in complete if any(row["step"] != "0" for row in _read_csv(path / "iou.csv"))]
    return (trained or complete)[-1]


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number_of(cell: str | None) -> float | None:
    """Number in a cell of a CSV file; `None` if it is empty or not finite."""
    value = float(cell) if cell else float("nan")
    return value if math.isfinite(value) else None


def _title(version: Path, config: Mapping[str, Any]) -> str:
    """Name of the run; written as its method is if it is named after it (`source_only`: "Source only")."""
    name = version.resolve().parent.name if version.name.startswith("version_") else version.name
    method = class_name(config.get("model"))
    if name.replace("_", "").lower() != method.lower():
        return name.replace("_", " ")
    return method if method.isupper() else re.sub(r"(?<=[a-z])([A-Z])", lambda m: " " + m[1].lower(), method)


def class_name(node: Any) -> str:
    """Name of a configured class, without its module."""
    path = node.get("class_path") if isinstance(node, Mapping) else node
    return str(path).rsplit(".", 1)[-1] if path else ""


def init_args(node: Any) -> Mapping[str, Any]:
    """Arguments of a configured class; none if it isn't one."""
    args = node.get("init_args") if isinstance(node, Mapping) else None
    return args if isinstance(args, Mapping) else {}


def describe(node: Any) -> str:
    """Class of a configured part, and the argument that tells it from others of its class."""
    args = init_args(node)
    details = [str(args[key]) for key in ("style", "backbone") if args.get(key)]
    return " ".join([class_name(node), *(f"({detail})" for detail in details)])


def label_space_of(run: Run) -> LabelSpace | None:
    """The label space of a run, for its colours; none if it is a file that isn't here any more."""
    name = init_args(run.config.get("data")).get("label_space")
    try:
        candidates = [*LABEL_SPACES.values(), *([get_label_space(str(name))] if name else [])]
    except ValueError:
        candidates = [*LABEL_SPACES.values()]
    return next((space for space in candidates if list(space.classes) == run.classes), None)
