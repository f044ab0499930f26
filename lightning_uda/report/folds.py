"""Scores of cross-validation: the confusion matrices of runs on one fold each, pooled for every city (NTHU)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from pathlib import Path
from typing import Any

import rich
import torch
from rich.table import Table

from lightning_uda.datasets.nthu import FOLDS
from lightning_uda.files import require_file_place, write_beside_older
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.metrics import (
    MIOU_NOTE,
    FoldScores,
    averaged,
    evaluate,
    iou_column,
    mean_column,
    score_folds,
    score_label,
)
from lightning_uda.report.notes import print_notes
from lightning_uda.report.run_files import CONFIG_FILE, ReportError
from lightning_uda.report.runs import Run, class_name, init_args, load_runs
from lightning_uda.tables import Row, console_table, csv_text, percent

_MEANS = {
    "mean_of_folds": "mean of folds",
    "mean_of_folds_absent_zero": "mean of folds, absent as 0 (CBST's programs)",
}
"""Kinds of a mean of the folds' means, as `FoldScores` and files call them, and as the table does."""


@dataclass(frozen=True)
class FoldedSet:
    """All folds of one city, or of another set.

    Attributes:
        title: Heading, such as "Rome".
        runs: The M runs, one for each fold, in the order of the folds.
        notes: What has to be known about the scores, such as a missing fold.
    """

    title: str
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    @property
    def label_space(self) -> LabelSpace:
        """The classes."""
        return self.runs[0].label_space

    @property
    def names(self) -> list[str]:
        """Names of the folds; of runs whose config tells no fold, the last parts of their folders."""
        numbers = map(_fold, self.runs)
        return [
            "/".join(run.folder.parts[-2:]) if number is None else str(number)
            for run, number in zip(self.runs, numbers, strict=True)
        ]

    @property
    def confusions(self) -> torch.Tensor:
        """Matrices of the folds, int64 (M, C, C); rows are ground truth."""
        return torch.stack([run.confusion for run in self.runs])

    def scores(self) -> dict[str, FoldScores]:
        """Scores over all classes as `miou`, and over each subset as `miou_<subset>`, in [0, 1]."""
        return {
            mean_column(subset): score_folds(self.confusions, indices)
            for subset, indices in averaged(self.label_space).items()
        }

    def columns(self) -> dict[str, dict[str, float]]:
        """Columns as in `iou.csv`, in percent: of each fold by its name, of `pooled`, and of the means of the folds."""
        matrices = {**dict(zip(self.names, self.confusions, strict=True)), "pooled": self.confusions.sum(dim=0)}
        found = {name: evaluate(matrix, self.label_space).columns() for name, matrix in matrices.items()}
        scores = self.scores().items()
        return found | {kind: {mean: 100 * getattr(score, kind) for mean, score in scores} for kind in _MEANS}


def report_folds(runs: Sequence[Path], output: Path) -> None:
    """Prints the scores of folds, one column for each city, writes them as CSV, and prints the file's path last.

    Args:
        runs: Run folders, as `load_folds` takes them.
        output: The file to write, as `write_folds` takes it.

    Raises:
        OSError: If the file can't be written.
        ReportError: As `load_folds`.
    """
    require_file_place(Path(output), "--output")
    sets = load_folds(runs)
    console = rich.get_console()
    console.print(folds_table(sets))
    console.print(MIOU_NOTE, style="dim", highlight=False)
    for note in (note for one in sets for note in one.notes):
        console.print(note, style="yellow", highlight=False, markup=False)
    print_notes([run for one in sets for run in one.runs], console)
    console.print(str(write_folds(sets, output)), soft_wrap=True, highlight=False, markup=False)


def load_folds(folders: Sequence[Path]) -> list[FoldedSet]:
    """Reads the last confusion matrices of runs and puts together those of one city.

    Args:
        folders: One for each fold, as `load_runs` takes them.

    Returns:
        The sets, in the order in which they first occur.

    Raises:
        ReportError: If a folder holds no confusion matrix, classes differ, a fold comes twice, or folds of one city
            are of different shuffles.
    """
    by_set: dict[str, list[Run]] = {}
    for run in load_runs(folders):
        by_set.setdefault(_set_name(run), []).append(run)
    return [_folded_set(title, runs) for title, runs in by_set.items()]


def folds_table(sets: Sequence[FoldedSet]) -> Table:
    """IoU per class of the pooled matrices, their means, and the means of the folds' means; in percent."""
    headings = [f"{one.title} ({len(one.runs)} fold{'s' * (len(one.runs) != 1)})" for one in sets]
    columns, space = [one.columns() for one in sets], sets[0].label_space

    def cells(kind: str, column: str) -> list[str]:
        return [percent(one[kind][column]) for one in columns]

    rows = [
        Row(name, cells("pooled", iou_column(name)), color)
        for name, color in zip(space.classes, space.palette, strict=True)
    ]
    for mean in map(mean_column, averaged(space)):
        rows.append(Row(score_label(mean), cells("pooled", mean), None, "bold", section=True))
        rows += [Row(f"  {label}", cells(kind, mean)) for kind, label in _MEANS.items()]
    return console_table("IoU in %, folds pooled", ["class", *headings], rows)


def write_folds(sets: Sequence[FoldedSet], output: Path) -> Path:
    """Writes the scores as CSV, in percent: of each set a row for each fold, then the pooled one and the means.

    Columns are `set`, `fold`, `miou`, `miou_<subset>` and `iou_<class>`; `fold` is the fold's name, `pooled`,
    `mean_of_folds` or `mean_of_folds_absent_zero` (as in CBST's programs, which count the IoU of a class as 0 that is
    in neither labels nor predictions). A cell is empty where there is nothing to measure.

    Args:
        sets: At least one.
        output: The file; one that is there already is kept as `<stem>.<n>.csv`.

    Returns:
        Path of the file.
    """
    rows = [(one.title, name, columns) for one in sets for name, columns in one.columns().items()]
    header = list(rows[0][2])
    cells = [[title, name, *(round(columns.get(key, nan), 4) for key in header)] for title, name, columns in rows]
    write_beside_older(Path(output), csv_text(["set", "fold", *header], cells))
    return Path(output)


def _folded_set(title: str, runs: Sequence[Run]) -> FoldedSet:
    for first, second in combinations(runs, 2):
        _require_distinct(title, first, second)
    ordered = sorted(runs, key=_fold_order)
    notes = [*_missing(title, ordered), *(note for run in ordered for note in _adapted_to_scored(run))]
    return FoldedSet(title, tuple(ordered), tuple(notes))


def _scored(run: Run) -> Mapping[str, Any]:
    """Node of the config that names the dataset scored; empty if there is none."""
    data = init_args(run.config.get("data"))
    return (data.get("val") if run.stage == "val" else data.get("test") or data.get("val")) or {}


def _fold(run: Run) -> int | None:
    """Number of the run's fold; `None` if the dataset has no folds."""
    fold = init_args(_scored(run)).get("fold")
    if fold is not None and not isinstance(fold, int):
        raise ReportError(f"{run.folder / CONFIG_FILE}: found fold: {fold!r} of data.{run.stage}; expected a number.")
    return fold


def _fold_order(run: Run) -> int:
    number = _fold(run)
    return -1 if number is None else number


def _set_name(run: Run) -> str:
    """What the fold is one of: the city, else the class of the dataset, else "runs"."""
    return str(init_args(_scored(run)).get("city", "")).capitalize() or class_name(_scored(run)) or "runs"


def _settings(run: Run) -> dict[str, Any]:
    """Settings of the dataset that all its folds have in common; where its files lie is none of them."""
    arguments = {key: value for key, value in init_args(_scored(run)).items() if key not in ("root", "fold")}
    return {"class_path": class_name(_scored(run)), **arguments}


def _require_distinct(title: str, first: Run, second: Run) -> None:
    """Refuses runs that score an image twice, as far as their configs tell."""
    if first.folder.resolve() == second.folder.resolve():
        raise ReportError(f"{second.folder} is given twice; give each run once.")
    if not _scored(first) or not _scored(second):
        return
    ours, theirs = _settings(first), _settings(second)
    differing = sorted(str(key) for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if not differing and _fold(first) == _fold(second):
        what = "the same images" if _fold(first) is None else f"fold {_fold(first)}"
        raise ReportError(
            f"{title}: {first.folder} and {second.folder} both score {what}; expected each fold once. Leave one out; "
            "compare methods in calls of their own."
        )
    if differing and (_fold(first) is not None or _fold(second) is not None):
        raise ReportError(
            f"{title}: {first.folder} and {second.folder} aren't folds of one division: "
            + "; ".join(f"{key}: {ours.get(key)} and {theirs.get(key)}" for key in differing)
            + ". Score them separately."
        )


def _missing(title: str, runs: Sequence[Run]) -> list[str]:
    missing = sorted(set(range(FOLDS)) - {_fold(run) for run in runs})
    if class_name(_scored(runs[0])) != "NTHU" or not missing or len(missing) == FOLDS:
        return []
    return [f"{title}: {FOLDS - len(missing)} of {FOLDS} folds; missing: {', '.join(map(str, missing))}."]


def _adapted_to_scored(run: Run) -> list[str]:
    """A note if the run's target holds the images that it scores: the target's fold was left as it was."""
    target = init_args(init_args(run.config.get("data")).get("target"))
    scored = init_args(_scored(run))
    if _fold(run) is None or target.get("split") != "adapt" or target.get("city") != scored.get("city"):
        return []
    if (target.get("fold"), target.get("fold_seed")) == (_fold(run), scored.get("fold_seed")):
        return []
    return [
        f"{run.folder}: the config's target is the images outside of fold {target.get('fold')}, the scores are of "
        f"fold {_fold(run)}: if the target was trained on, scored images were seen in training."
    ]
