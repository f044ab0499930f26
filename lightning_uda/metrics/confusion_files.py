"""The confusion matrices of a run's evaluations, a CSV file each; all that is reported is derived from them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_uda.files import free_name, read_text, replace_file
from lightning_uda.metrics.columns import SCOPE, in_scope, scope_order
from lightning_uda.tables import csv_text, read_rows

CONFUSIONS = "confusions"
"""Folder of the matrices in a run folder."""

IMAGE_SCORES = "image_scores"
"""Folder beside it with the scores of single images."""

_SHOWN = 80  # characters of a file that holds something else
_NAME = re.compile(rf"(?P<stage>[a-z]+)_step_(?P<step>\d+)(_(?P<scope>{SCOPE}))?(\.(?P<number>\d+))?\.csv")


@dataclass(frozen=True)
class ConfusionFile:
    """Where the matrix of one evaluation lies, of one scope.

    Attributes:
        path: The file.
        stage: "val" or "test".
        step: Training step of the network that was evaluated.
        scope: Which pixels it counts, such as "at_512x1024"; `None` for all at the size of the labels.
        number: 1 for the first evaluation of a step in this run, 2 for the second.
    """

    path: Path
    stage: str
    step: int
    scope: str | None
    number: int

    @property
    def image_scores(self) -> Path:
        """Where the scores of the evaluation's single images lie, if it kept any."""
        return image_scores_file(self.path)


def image_scores_file(matrix: Path) -> Path:
    """Where the scores of single images lie of the evaluation that has this matrix."""
    return matrix.parent.with_name(IMAGE_SCORES) / matrix.name


def keep_image_scores(path: Path, scores: Sequence[tuple[str, float]]) -> None:
    """Writes the scores of the images of an evaluation, the worst first.

    Args:
        path: CSV file to write or replace; its folder is made if it isn't there.
        scores: Name and mean IoU of each image, in percent; those without labels (NaN) are left out.
    """
    known = sorted((score for score in scores if score[1] == score[1]), key=lambda score: score[1])
    text = csv_text(["image", "miou"], [(name, round(miou, 4)) for name, miou in known])
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def latest_image_scores(run: Path, stage: str) -> list[tuple[str, float]]:
    """Names and scores of the images in the last evaluation of a stage, the worst first; none if it kept none."""
    files = [file.image_scores for file in find_confusions(run) if file.stage == stage and file.scope is None]
    if not files or not files[-1].is_file():
        return []
    return [(row["image"], float(row["miou"])) for row in read_rows(files[-1], {"image": str, "miou": float})]


def keep_confusion(
    run: Path, stage: str, step: int, scope: str | None, confusion: Tensor, classes: Sequence[str]
) -> Path:
    """Writes the matrix of an evaluation into a run folder, beside all that are there.

    Args:
        run: The run folder.
        stage: "val" or "test".
        step: Training step of the network that was evaluated.
        scope: Which pixels it counts, such as "at_512x1024"; `None` for all at the size of the labels.
        confusion: Integer (C, C); rows are ground truth, columns predictions.
        classes: C names.

    Returns:
        The file: `confusions/val_step_000800.csv`, `confusions/val_step_000800_at_512x1024.csv`; where the same step
        is evaluated again, `confusions/val_step_000800.2.csv`.
    """
    path = run / CONFUSIONS / f"{in_scope(f'{stage}_step_{step:06d}', scope)}.csv"
    path = free_name(path, first=2) if path.exists() else path
    write_confusion(path, confusion, classes)
    return path


def find_confusions(run: Path) -> list[ConfusionFile]:
    """The matrices in a run folder by step and, where a step was evaluated again, in the order of the evaluations."""
    found = [(path, _NAME.fullmatch(path.name)) for path in (run / CONFUSIONS).glob("*.csv")]
    files = [
        ConfusionFile(path, name["stage"], int(name["step"]), name["scope"], int(name["number"] or 1))
        for path, name in found
        if name
    ]
    return sorted(files, key=lambda file: (file.step, file.number, scope_order(file.scope)))


def write_confusion(path: Path, confusion: Tensor, classes: Sequence[str]) -> None:
    """Writes a matrix with the names of its classes; the file appears whole or not at all.

    Args:
        path: CSV file to write or replace; its folder is made if it isn't there.
        confusion: Integer (C, C); rows are ground truth, columns predictions.
        classes: C names.
    """
    rows = ([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
    text = csv_text(["truth \\ prediction", *classes], rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_confusion(path: Path) -> tuple[Tensor, list[str]]:
    """Reads what `write_confusion` wrote.

    Returns:
        The matrix, int64 (C, C), and the C class names.

    Raises:
        ValueError: If the file holds something else.
    """
    text = read_text(path)
    try:
        table = [row for row in csv.reader(io.StringIO(text, newline="")) if row] or [[""]]
        (_, *classes), *rows = table
        confusion = torch.tensor([[int(cell) for cell in row[1:]] for row in rows], dtype=torch.int64)
    except (ValueError, csv.Error):
        classes, rows, confusion = [], [], torch.full((1,), -1)
    whole = confusion.shape == (len(classes), len(classes)) and int(confusion.min()) >= 0
    if not whole or [row[0] for row in rows] != classes:
        raise ValueError(
            f"{path}: expected a confusion matrix with class names in its first row and column and counts elsewhere, "
            f"found {text[:_SHOWN]!r}{' ...' * (len(text) > _SHOWN)}. Evaluate the run's checkpoint again."
        )
    return confusion, classes
