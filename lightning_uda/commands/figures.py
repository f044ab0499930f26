"""A file of figures of finished runs, which can be committed, so that nobody has to train them again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lightning_uda.files import locked
from lightning_uda.report.run_files import read_record
from lightning_uda.tables import append_row, read_rows

_ABOUT = ("date", "commit", "machine", "torch")
"""Columns that say how a run came about; all others but those of its point are metrics."""

PointKey = tuple[str, ...]
"""A point: its row, and the values of seed and further axes as text."""


class FiguresFile:
    """A CSV file with a line for each finished run of a grid.

    Columns are `row`, `seed` and further axes, then `date`, `commit` (that the run began at, empty outside a
    repository), `machine` (the GPU's name, or CPU) and `torch`, then the metrics; an empty cell is a metric that had
    nothing to measure. A line that is deleted is trained again by the next grid.

    Args:
        path: The file; made with the first line.
        axes: Names of the values that make a point, such as `seed`.

    Raises:
        ValueError: If the file lacks a column of the points.
    """

    def __init__(self, path: Path, axes: tuple[str, ...]) -> None:
        self.path, self.axes = path, axes
        rows = read_rows(path) if path.is_file() else []
        for column in ("row", *axes):
            if rows and column not in rows[0]:
                raise ValueError(
                    f"{path}: found no column {column!r} in {list(rows[0])}; expected the figures of this grid. Give "
                    "another file by --figures."
                )
        self.figures = {self._key(row["row"], row): self._metrics(row) for row in rows}

    def find(self, row: str, values: Mapping[str, Any]) -> dict[str, float] | None:
        """Metrics of a run; `None` if the file has none."""
        return self.figures.get(self._key(row, values))

    def add(self, row: str, values: Mapping[str, Any], figures: Mapping[str, float], folder: Path) -> dict[str, float]:
        """Appends the line of the run in `folder`, unless it is there; safe while other grids append to the same file.

        Returns:
            The figures as the file holds them, rounded to four places, so that tables are the same when they are made
            from the file later.
        """
        point = {"row": row, **{axis: values[axis] for axis in self.axes}}
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            if FiguresFile(self.path, self.axes).find(row, values) is None:
                append_row(self.path, {**point, **dict(zip(_ABOUT, _about(folder), strict=True)), **figures})
            self.figures = FiguresFile(self.path, self.axes).figures
        return self.figures[self._key(row, values)]

    def _key(self, row: str, values: Mapping[str, Any]) -> PointKey:
        return (row, *(str(values[axis]) for axis in self.axes))

    def _metrics(self, row: Mapping[str, str]) -> dict[str, float]:
        own = {"row", *self.axes, *_ABOUT}
        try:
            return {name: float(cell or "nan") for name, cell in row.items() if name not in own}
        except ValueError as error:
            raise ValueError(f"{self.path}: row {row['row']}: {error}. Mend the cell, or delete the line.") from error


def _about(folder: Path) -> tuple[str, str, str, str]:
    commit = read_record(folder).get("git", "")[:7]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return datetime.now(UTC).strftime("%Y-%m-%d"), commit, machine, torch.__version__
