"""The table of several runs: rows for the page, and the table of the console."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from lightning_uda.label_spaces import LabelSpace
from lightning_uda.metrics import mean_label
from lightning_uda.report.runs import Run, label_space_of


def table_of(runs: Sequence[Run]) -> Table:
    """The table for a console."""
    table = Table(title="IoU in %", title_style="bold", title_justify="left", header_style="dim", box=HORIZONTALS)
    table.add_column("class", no_wrap=True)
    for run in runs:
        table.add_column(run.title, justify="right")
    if len(runs) > 1:
        table.add_column("gain", justify="right")
    for row in rows_of(runs, label_space_of(runs[0])):
        if row["first_mean"]:
            table.add_section()
        swatch = Text("██ ", style="rgb({},{},{})".format(*row["color"])) if row["color"] else Text()
        cells = [Text(cell["text"], style="bold" if cell["best"] else "") for cell in row["cells"]]
        gain = [Text(row["gain"], style={"up": "green", "down": "red"}.get(row["trend"], ""))] if len(runs) > 1 else []
        table.add_row(swatch + Text(row["label"]), *cells, *gain, style="bold" if row["mean"] else "")
    return table


def rows_of(runs: Sequence[Run], space: LabelSpace | None) -> Iterable[dict[str, Any]]:
    """Rows of the table, for the console and for the page."""
    means, classes = runs[0].means, runs[0].classes
    for column in [*(f"iou_{name}" for name in classes), *means]:
        values = [run.value(column) for run in runs]
        present = [value for value in values if value is not None]
        gain, trend = gain_of(values[0], values[-1])
        name = column.removeprefix("iou_")
        yield {
            "label": mean_label(column) if column in means else name,
            "mean": column in means,
            "first_mean": column == means[0],
            "color": space.palette[classes.index(name)] if space and column not in means else None,
            "cells": [
                {
                    "text": percent(value),
                    "width": value or 0.0,
                    "best": len(runs) > 1 and value is not None and value == max(present),
                }
                for value in values
            ],
            "gain": gain,
            "trend": trend,
        }


def percent(value: float | None) -> str:
    """One decimal, or a dash where there is no value."""
    return "-" if value is None else f"{value:.1f}"


def gain_of(first: float | None, last: float | None) -> tuple[str, str]:
    """Difference of two values as they are printed, and whether it is "up", "down" or neither ("")."""
    if first is None or last is None:
        return "-", ""
    gain = round(round(last, 1) - round(first, 1), 1)
    return f"{gain:+.1f}", "up" if gain > 0 else "down" if gain < 0 else ""
