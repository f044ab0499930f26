"""The tables of a grid: figures of its runs, and what is printed and written of them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from math import nan
from pathlib import Path

import rich

from lightning_uda.commands.grid_file import Grid, Row
from lightning_uda.commands.runner import Runner, load_run, read_stamp
from lightning_uda.files import write_beside_older
from lightning_uda.metrics import MIOU_NOTE, iou_column, mean_column
from lightning_uda.metrics.columns import is_mean
from lightning_uda.report import build_report
from lightning_uda.report.folds import report_folds
from lightning_uda.report.grid_table import (
    BELOW_ONE,
    BEST,
    Seeds,
    figures_of,
    order_steps,
    orders_table,
    orders_text,
    score_rows,
    scores_table,
    scores_text,
)
from lightning_uda.report.notes import print_notes

MINUTES = "minutes"
"""Metric: minutes of wall time that a run took, where it was trained by a grid."""


def figures_of_run(grid: Grid, folder: Path) -> dict[str, float] | None:
    """Figures of a run that is done, by metric; `None` if its folder holds no evaluation."""
    run = load_run(folder)
    if run is None:
        return None
    metrics = [*run.means, BEST + mean_column(), BELOW_ONE, *grid.metrics, *map(iou_column, run.classes)]
    return figures_of(run, metrics) | {MINUTES: read_stamp(folder).get(MINUTES, nan)}


def tabulate(grid: Grid, runner: Runner, figures: Mapping[str, Mapping[str, float]], folder: Path) -> None:
    """Prints the tables of a grid and writes `table.csv`, `orders.csv` and `report.html`; of folds `<row>_folds.csv`.

    `table.csv` has all classes and means beside the grid's metrics, `report.html` the runs whose folders are there.
    Tables and pages that are there already are kept as `<stem>.<n><suffix>`.
    """
    console = rich.get_console()
    folders = {point.run: runner.folder(point) for point in runner.points}
    if grid.folds:
        for name in dict.fromkeys(itertools.chain(*grid.tables.values())):
            if done := [found for point in grid.rows[name].points if (found := folders.get(point.run))]:
                report_folds(done, folder / f"{name}_folds.csv")
        return
    if not figures:
        return
    titles = {name: row.title for name, row in grid.rows.items()}
    rows = {name: _seeds_of(row, figures) for name, row in grid.rows.items()}
    known = list(dict.fromkeys(metric for found in figures.values() for metric in found))
    scores, means = {}, False
    for title, names in grid.tables.items():
        control = grid.control if grid.control in names else names[0]
        scores[title] = score_rows({name: rows[name] for name in names}, known, control)
        of_console = grid.metrics or [metric for metric in known if is_mean(metric)]
        visible = sorted(
            (score for score in scores[title] if score.metric in of_console),
            key=lambda score: of_console.index(score.metric),
        )
        console.print(scores_table(title, visible, titles))
        means |= any(is_mean(score.metric.removeprefix(BEST)) for score in visible)
    if means:
        console.print(MIOU_NOTE, style="dim", highlight=False)
    files = {folder / "table.csv": scores_text(scores)}
    if steps := order_steps(rows, grid.orders, (grid.metrics or [mean_column()])[0]):
        console.print(orders_table(steps, titles))
        files[folder / "orders.csv"] = orders_text(steps)
    for path, text in files.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_beside_older(path, text)
    shown = set(itertools.chain(*grid.tables.values()))
    runs = [
        run
        for name in grid.rows
        if name in shown
        for point in grid.rows[name].points
        if (run := load_run(folders.get(point.run)))
    ]
    print_notes(runs, console)
    pages = [build_report([run.folder for run in runs], folder / "report.html")] if runs else []
    for path in (*files, *pages):
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _seeds_of(row: Row, figures: Mapping[str, Mapping[str, float]]) -> Seeds:
    return {tuple(point.values.items()): figures[point.run] for point in row.points if point.run in figures}
