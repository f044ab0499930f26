"""Confusion matrices as CSV files, so that runs can be scored together later."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def write_confusion(path: Path, confusion: Tensor, classes: Sequence[str]) -> None:
    """Writes a matrix with the names of its classes; the file appears whole or not at all.

    Args:
        path: CSV file to write or replace; its folder is made if it isn't there.
        confusion: Integer (C, C); rows are ground truth, columns predictions.
        classes: C names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth \\ prediction", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
    os.replace(part, path)


def read_confusion(path: Path) -> tuple[Tensor, list[str]]:
    """Reads what `write_confusion` wrote.

    Returns:
        The matrix, int64 (C, C), and the C class names.

    Raises:
        ValueError: If the file holds something else.
    """
    with path.open(newline="", encoding="utf-8") as file:
        (_, *classes), *rows = list(csv.reader(file)) or [[""]]
    try:
        confusion = torch.tensor([[int(cell) for cell in row[1:]] for row in rows], dtype=torch.int64)
    except ValueError:
        confusion = torch.empty(0)
    if confusion.shape != (len(classes), len(classes)) or [row[0] for row in rows] != classes:
        raise ValueError(
            f"{path}: expected a confusion matrix with class names in its first row and column and counts elsewhere, "
            f"found {len(rows)} rows for {len(classes)} classes. Let the run write it again."
        )
    return confusion, classes
