"""The tables of several runs: rows for the page, and tables for the console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from lightning_uda.metrics import best_text, iou_column, mean_column, score_label
from lightning_uda.report.runs import Run
from lightning_uda.tables import Row, console_table, percent

LOSS = "train/loss"
"""Column of the total loss in `metrics.csv`; `train/loss_<name>` are those of its parts."""


def table_of(runs: Sequence[Run], compared: Sequence[Run] | None = None) -> Table:
    """IoU per class and mean IoU of runs, for a console; see `rows_of`."""
    compared = runs[-1:] if compared is None else compared
    gains = ["gain"] if len(compared) == 1 else [f"gain of {run.title}" for run in compared]
    columns = ["class", *(run.title for run in runs), *(gains if len(runs) > 1 else [])]
    return console_table("IoU in %", columns, map(_console_row, rows_of(runs, compared)))


def rows_of(runs: Sequence[Run], compared: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Rows of the table of IoUs, for the console and for the page.

    Args:
        runs: The runs.
        compared: Those of them whose gain over the first is shown, if there are several runs.
    """
    space, means = runs[0].label_space, runs[0].means
    labels = {iou_column(name): name for name in space.classes} | {name: score_label(name) for name in means}
    colors = dict(zip(labels, space.palette, strict=False))
    for column, label in labels.items():
        values = [run.value(column) for run in runs]
        best = max((value for value in values if value is not None), default=None) if len(runs) > 1 else None
        yield {
            "label": label,
            "mean": column in means,
            "first_mean": column == means[0],
            "color": colors.get(column),
            "absent": None in values,
            "cells": [
                {"text": percent(value), "width": value or 0.0, "best": value is not None and value == best}
                for value in values
            ],
            "gains": [gain_of(values[0], run.value(column)) for run in compared] if len(runs) > 1 else [],
        }


def best_miou(run: Run) -> str:
    """The best mIoU of a run and its step in words; empty if there was nothing to choose from."""
    best = run.best(mean_column()) if len(run.evaluations) > 1 else None
    return "" if best is None else best_text(*best)


def losses_table(runs: Sequence[Run]) -> Table | None:
    """The rows of `loss_rows` for a console; `None` if no loss was logged."""
    rows = [
        Row(row["label"], row["cells"], style="bold" * row["total"], section=row["total"]) for row in loss_rows(runs)
    ]
    title = "Losses at the end of training"
    return console_table(title, ["loss", *(run.title for run in runs)], rows) if rows else None


def loss_rows(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Rows of the table of losses: each by its name, the total last; mean of the last twentieth of what was logged."""
    for column, label in losses_of(runs).items():
        curves = [run.curve(column)[1] for run in runs]
        ends = [np.mean(values[-max(len(values) // 20, 1) :]) if values else None for values in curves]
        cells = ["-" if end is None else f"{end:.3g}" for end in ends]
        yield {"label": label, "total": column == LOSS, "cells": cells}


def losses_of(runs: Sequence[Run]) -> dict[str, str]:
    """Columns of `metrics.csv` that are losses, and their names: `train/loss_mixed` "mixed", `train/loss` "total"."""
    columns = sorted({name for run in runs for name in run.logged})
    parts = {name: name[len(LOSS) + 1 :].replace("_", " ") for name in columns if name.startswith(f"{LOSS}_")}
    return parts | ({LOSS: "total"} if LOSS in columns else {})


def gain_of(first: float | None, last: float | None) -> tuple[str, str]:
    """Difference of two values as they are printed, and whether it is "up", "down" or neither ("")."""
    if first is None or last is None:
        return "-", ""
    gain = round(round(last, 1) - round(first, 1), 1)
    return f"{gain:+.1f}", "up" if gain > 0 else "down" if gain < 0 else ""


def _console_row(row: dict[str, Any]) -> Row:
    cells = [Text(cell["text"], style="bold" if cell["best"] else "") for cell in row["cells"]]
    cells += [Text(gain, style={"up": "cyan", "down": "yellow"}.get(trend, "")) for gain, trend in row["gains"]]
    return Row(row["label"], cells, row["color"], "bold" if row["mean"] else "", row["first_mean"])
