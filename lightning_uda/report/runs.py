"""What a run folder holds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_uda.files import STOPPED_EARLY, versions
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.metrics import CONFUSIONS, best_of, columns_of, evaluate, find_confusions
from lightning_uda.metrics.columns import is_mean
from lightning_uda.report.run_files import (
    ReportError,
    has_trained,
    read_config,
    read_label_space,
    read_matrices,
    read_metrics,
    read_notes,
    read_record,
)


@dataclass(eq=False)
class Run:
    """What a run folder holds.

    Attributes:
        folder: The folder with `confusions`.
        title: Short name for headings, distinct among the runs of a report.
        config: Content of `config.yaml`; empty if there is none.
        metrics: Rows of `metrics.csv`; none if there is no such file.
        notes: Lines of `notes.txt`, if there is such a file; then a warning of classes that the set has no pixel of.
        record: Content of `run.yaml`; empty if there is none.
        earlier: Folders of the runs that this one went on from in a folder of its own, the first of them first; their
            curves and evaluations are part of this one's.
        label_space: The classes.
        stage: Stage of the evaluations: "val" if there is one, else "test".
        evaluations: Columns (as in `iou.csv`) of each evaluation of the stage by its step, ascending; in percent, NaN
            where there is nothing to measure.
        confusion: Matrix of the last evaluation, of all pixels at the size of the labels, int64 (C, C); rows are ground
            truth.
    """

    folder: Path
    title: str
    config: dict[str, Any]
    metrics: list[dict[str, str]]
    notes: list[str]
    record: dict[str, Any]
    earlier: list[Path]
    label_space: LabelSpace
    stage: str
    evaluations: dict[int, dict[str, float]]
    confusion: Tensor

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of train ids."""
        return list(self.label_space.classes)

    @property
    def means(self) -> list[str]:
        """Columns of mean IoUs: `miou` and `miou_<subset>`, and these with `_<scope>`."""
        return [column for column in self.evaluations[self.last_evaluation] if is_mean(column)]

    @property
    def logged(self) -> list[str]:
        """Columns of `metrics`."""
        return list(dict.fromkeys(name for row in self.metrics for name in row))

    @property
    def last_evaluation(self) -> int:
        """Step of the last evaluation."""
        return max(self.evaluations)

    @property
    def last_step(self) -> int:
        """The step that the run got to."""
        logged = [int(row["step"]) + 1 for row in self.metrics]
        return max([*logged, self.last_evaluation])

    @property
    def trainer(self) -> Mapping[str, Any]:
        """Options of the trainer, as far as its config tells."""
        return self.config.get("trainer") or {}

    @property
    def max_steps(self) -> int | None:
        """The step that the run was to end at, if its config says so."""
        steps = self.trainer.get("max_steps")
        if isinstance(steps, int) and steps > 0:
            return steps
        planned = self.curve("rounds/steps")[1]  # of self-training
        return int(planned[-1]) if planned else None

    @property
    def stopped_early(self) -> bool:
        """Whether a callback ended the run before its last step."""
        return any(note.startswith(STOPPED_EARLY) for note in self.notes)

    @property
    def finished(self) -> bool:
        """Whether the run got to its last step or was stopped early, as far as its files tell; an evaluation did."""
        if self.stopped_early:
            return True
        trained = any(name.startswith("train/") for name in self.logged)
        if self.max_steps is None or not trained:
            return True
        interval: int = self.trainer.get("log_every_n_steps") or 50
        return self.last_step + interval > self.max_steps

    def value(self, column: str) -> float | None:
        """A column of the last evaluation, in percent; `None` where there is nothing to measure."""
        value = self.evaluations[self.last_evaluation].get(column, math.nan)
        return None if math.isnan(value) else value

    def scores(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of the evaluations, where it has any; in percent."""
        return _points((step, columns.get(column, math.nan)) for step, columns in self.evaluations.items())

    def best(self, column: str) -> tuple[int, float] | None:
        """Step and value of the best evaluation by a column; see `metrics.best_of`."""
        return best_of(zip(*self.scores(column), strict=True))

    def curve(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of `metrics.csv`, where it has any."""
        return _points((int(row["step"]), float(row.get(column) or math.nan)) for row in self.metrics)


def load_runs(folders: Sequence[Path], against: Path | None = None) -> list[Run]:
    """Reads run folders and checks that they can be compared.

    Raises:
        ReportError: If a folder holds no evaluation or a damaged file, or the runs have different classes or stages.
    """
    if not folders:
        raise ReportError("Found no run folder; give at least one, such as runs/demo/dacs.")
    runs = [_load_run(Path(folder)) for folder in folders]
    if against is not None:
        reference = _load_run(Path(against))
        others = [run for run in runs if run.folder.resolve() != reference.folder.resolve()]
        runs = [reference, *others]
    for run in runs[1:]:
        if run.classes != runs[0].classes:
            raise ReportError(
                f"The runs have different label spaces: {runs[0].folder} has {len(runs[0].classes)} classes, "
                f"{run.folder} has {len(run.classes)}; they differ in "
                f"{sorted(set(runs[0].classes) ^ set(run.classes)) or 'their order'}. Report them separately."
            )
        if run.stage != runs[0].stage:
            raise ReportError(
                f"{runs[0].folder} was scored on the {runs[0].stage} images, {run.folder} on the {run.stage} images; "
                "expected evaluations of one set. Validate or test both, and report those run folders."
            )
    titles = [run.title for run in runs]
    same = [run for run, title in zip(runs, titles, strict=True) if titles.count(title) > 1]
    depths = range(2, 1 + max((len(run.folder.parts) for run in same), default=0))
    depth = next((depth for depth in depths if len({run.folder.parts[-depth:] for run in same}) == len(same)), 2)
    for run in same:
        run.title += f" ({'/'.join(run.folder.parts[-depth:])})"
    return runs


def class_name(node: Any) -> str:
    """Name of a configured class, without its module."""
    path = node.get("class_path") if isinstance(node, Mapping) else node
    return str(path).rsplit(".", 1)[-1] if path else ""


def init_args(node: Any) -> Mapping[str, Any]:
    """Arguments of a configured class; none if it isn't one."""
    args = node.get("init_args") if isinstance(node, Mapping) else None
    return args if isinstance(args, Mapping) else {}


def _load_run(folder: Path) -> Run:
    version = _version_folder(folder)
    config, notes = read_config(version), read_notes(version)
    stage, matrices, classes = read_matrices(version)
    space = read_label_space(version, init_args(config.get("data")).get("label_space"), classes)
    last = evaluate(matrices[max(matrices)][None], space)
    if warning := last.lacking(stage):
        notes.append(f"warning: {warning}")
    metrics, earlier = read_metrics(version), _earlier(version)
    for before in reversed(earlier):
        start = min([*matrices, *(int(row["step"]) for row in metrics)])
        metrics = [row for row in read_metrics(before) if int(row["step"]) < start] + metrics
        if find_confusions(before):
            other, more, names = read_matrices(before)
            if (other, names) == (stage, classes):
                matrices = {step: found for step, found in more.items() if step <= start} | matrices
    return Run(
        folder=version,
        title=_title(version, config),
        config=config,
        metrics=metrics,
        notes=notes,
        record=read_record(version),
        earlier=earlier,
        label_space=space,
        stage=stage,
        evaluations={
            step: columns_of(evaluate(matrix, space, scope) for scope, matrix in by_scope.items())
            for step, by_scope in sorted(matrices.items())
        },
        confusion=matrices[max(matrices)][None],
    )


def _earlier(version: Path) -> list[Path]:
    """Folders of the runs that a training went on from by `--ckpt_path FILE`, the first of them first."""
    found = [version]
    while has_trained(found[0]) and (checkpoint := read_config(found[0]).get("ckpt_path")):
        folder = Path(checkpoint).parent.parent
        sibling = found[0].parent / folder.name  # where the run was moved, or its path is relative to another folder
        moved = [sibling] if folder.parent.name == sibling.parent.name else []
        there = next((path for path in (folder, *moved) if has_trained(path) and path not in found), None)
        if there is None:
            break
        found.insert(0, there)
    return found[:-1]


def _version_folder(folder: Path) -> Path:
    """The folder itself if it is one of a run, else the latest version in it that trained."""
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder; expected a run folder, such as runs/demo/dacs.")
    candidates = versions(folder) or [folder]
    evaluated = [path for path in candidates if find_confusions(path)]
    if not evaluated:
        raise ReportError(_no_evaluation(candidates[-1]))
    return ([path for path in evaluated if has_trained(path)] or evaluated)[-1]


def _no_evaluation(folder: Path) -> str:
    message = f"Run folder {folder} holds no confusion matrix ({CONFUSIONS}/val_step_<step>.csv), "
    if not (folder / "iou.csv").is_file():
        return f"{message}which a run writes at its first validation. Let the run go on, or give another folder."
    return (
        f"{message}only the iou.csv of an older version of this package. Evaluate its checkpoint again, lightning-uda "
        f"validate --config {folder}/config.yaml --ckpt_path FILE, and give the folder of that run."
    )


def _title(version: Path, config: Mapping[str, Any]) -> str:
    """Name of the run; written as its method is if it is named after it (`source_only`: "Source only")."""
    name = version.resolve().parent.name if version.name.startswith("version_") else version.name
    method = class_name(config.get("model"))
    if name.replace("_", "").lower() != method.lower():
        return name.replace("_", " ")
    return method if method.isupper() else re.sub(r"(?<=[a-z])([A-Z])", lambda m: " " + m[1].lower(), method)


def _points(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    found = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]
