"""`lightning-uda grid`: the runs of a table, rows x seeds, and the table of their scores."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import rich
import yaml

from lightning_uda.commands.figures import FiguresFile
from lightning_uda.commands.runner import Point, Runner, load_run, read_stamp, split_options
from lightning_uda.files import write_beside_older
from lightning_uda.metrics import iou_column, mean_column
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

_ROW_KEYS = {"title", "parent", "config", "command", "run", "options"}
_KEYS = {"name", "seeds", "axes", "rows", "tables", "orders", "metrics", "control", "folds"} | _ROW_KEYS - {
    "title",
    "parent",
}
_COMMANDS = ("fit", "validate", "test")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_RUN_OF = re.compile(r"\{run:([^{}]+)\}")

MINUTES = "minutes"
"""Metric: minutes of wall time that a run took, where it was trained by a grid."""


@dataclass(frozen=True)
class Row:
    """A row of a grid.

    Attributes:
        title: How tables call it.
        points: Its runs, one for each seed and further axes' values.
    """

    title: str
    points: list[Point]


@dataclass(frozen=True)
class Grid:
    """A grid file.

    Attributes:
        name: Folder of its tables, below the output folder.
        rows: Rows to run, those that chosen ones start from first.
        points: All runs, in the order of training; those of one seed follow each other.
        tables: Rows of each table by its title.
        orders: Rows of each order that is claimed, by its name, the lowest first.
        metrics: What the tables show; empty for the mean IoUs.
        control: The row that others are compared with, where a table has it; else that is a table's first.
        folds: Whether the points of a row are folds of a cross-validation, which are pooled instead of averaged.
    """

    name: str
    rows: dict[str, Row]
    points: list[Point]
    tables: dict[str, list[str]]
    orders: dict[str, list[str]]
    metrics: list[str]
    control: str | None
    folds: bool


def run_grid(arguments: list[str]) -> None:
    """Runs the points of a grid file that aren't done, and tabulates all.

    Args:
        arguments: `FILE [--seeds N ...] [--rows NAME ...] [--output DIR] [--figures FILE] [--jobs N] [--dry-run]
            [-- options]`.

    Raises:
        ValueError: If the file is no grid.
        SystemExit: If options of a point are refused, a point fails, or the user stops the grid.
    """
    own, extra = split_options(arguments)
    parser = argparse.ArgumentParser(
        prog="lightning-uda grid",
        usage="%(prog)s FILE [options] [-- options of every run]",
        description="Runs the rows of a table over seeds and tabulates mean, deviation and the difference from a "
        "control. Points that are done are left as they are, so that the same command goes on after a stop.",
    )
    parser.add_argument("file", type=Path, help="Grid file, such as configs/grids/minicity.yaml.")
    parser.add_argument("--seeds", type=int, nargs="+", help="Seeds instead of those of the file.")
    parser.add_argument("--rows", nargs="+", help="These rows only, and those that they start from.")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="Folder of all runs.")
    parser.add_argument(
        "--figures",
        type=Path,
        help="CSV file that gets a line of figures as each run ends. Runs that have a line there aren't trained again, "
        "unless others start from them.",
    )
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time, with one thread each if several.")
    parser.add_argument("--dry-run", action="store_true", help="Show the points and their commands only.")
    chosen = parser.parse_args(own)
    grid = read_grid(chosen.file, chosen.seeds, chosen.rows, extra)
    file = FiguresFile(chosen.figures, tuple(grid.points[0].values)) if chosen.figures else None
    rows_of = {point.run: name for name, row in grid.rows.items() for point in row.points}
    figures: dict[str, dict[str, float]] = {}
    for point in grid.points:
        if file and (found := file.find(rows_of[point.run], point.values)) is not None:
            figures[point.run] = found

    def record(point: Point, folder: Path) -> None:
        run = load_run(folder)
        if run is None or point.run in figures:
            return
        metrics = [*run.means, BEST + mean_column(), BELOW_ONE, *grid.metrics, *map(iou_column, run.classes)]
        stamp = read_stamp(folder)
        figures[point.run] = figures_of(run, metrics) | {MINUTES: stamp.get(MINUTES, nan)}
        if file:
            figures[point.run] = file.add(rows_of[point.run], point.values, figures[point.run])

    runner = Runner(grid.name, _left(grid.points, figures), chosen.output, record)
    if chosen.dry_run:
        runner.show()
        return
    to_do = {point.run for point in runner.to_do()}
    left = ([point for point in row.points if point.run in to_do] for row in grid.rows.values())
    runner.check(points[0] for points in left if points)
    runner.run(chosen.jobs)
    tabulate(grid, runner, figures, chosen.output / grid.name)
    runner.require_all()


def _left(points: Sequence[Point], known: Mapping[str, Any]) -> list[Point]:
    """The points without figures, and those that these start from."""
    wanted = {point.run for point in points if point.run not in known}
    for point in reversed(points):
        if point.run in wanted:
            wanted.update(point.needs)
    return [point for point in points if point.run in wanted]


def read_grid(
    path: Path, seeds: Sequence[int] | None = None, chosen: Sequence[str] | None = None, extra: Sequence[str] = ()
) -> Grid:
    """Reads a grid file.

    It is YAML with `rows`: the name of each with its settings, which go over those of the same names at the top:
    `config` (file), `command` (`fit`, `validate` or `test`), `run` (name of the run, its folder below the output
    folder), and `options`, a list which is added to that of the top. Further settings of a row are its `title` and its
    `parent`, a row above it that it belongs to. At the top stand `name`, `seeds`, `axes` (further values that make
    points, such as `fold: [0, 1]`), `tables` (title to list of rows), `orders` (name of an order that is claimed to its
    rows, the lowest first), `metrics`, `control` and `folds`.

    In `config`, `run` and `options`, `{seed}`, `{row}`, `{parent}` and the names of axes in braces stand for their
    values, and `{run:ROW}` in `options` for the run folder of a row above, of the same seed.

    Args:
        path: The file.
        seeds: Seeds instead of the file's.
        chosen: Names of rows to run; `None` for all.
        extra: Further arguments of every run.

    Raises:
        ValueError: If it is no such file, or a chosen row isn't in it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: can't be read as YAML: {error}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("rows"), Mapping) or not content["rows"]:
        raise ValueError(f"{path}: expected a grid file, with `rows`: the name of each row with its settings.")
    _require_known(f"{path}", content, _KEYS)
    settings = {name: _row_settings(path, name, content) for name in content["rows"]}
    axes = {"seed": seeds or content.get("seeds") or [0], **(content.get("axes") or {})}
    for axis, several in axes.items():
        _require_list(f"{path}: {'seeds' if axis == 'seed' else axis}", several)
    wanted = _with_needed(path, settings, chosen)
    rows = {name: Row(str(settings[name].get("title") or name.replace("_", " ")), []) for name in wanted}
    for values in (dict(zip(axes, one, strict=True)) for one in itertools.product(*axes.values())):
        for name, row in rows.items():
            row.points.append(_point(path, name, values, settings, extra))
    points = list(itertools.chain(*zip(*(row.points for row in rows.values()), strict=True)))
    _require_distinct(path, points)
    shown = [name for name in rows if chosen is None or name in chosen]
    tables = content.get("tables") or {content.get("name") or path.stem: list(settings)}
    orders = content.get("orders") or {}
    control = content.get("control")
    for what, several in (
        ("metrics", content.get("metrics") or []),
        *((f"tables: {title}", names) for title, names in tables.items()),
        *((f"orders: {title}", names) for title, names in orders.items()),
    ):
        _require_list(f"{path}: {what}", several)
    for name in [*itertools.chain(*tables.values(), *orders.values()), *([control] if control else [])]:
        _require_row(f"{path}: tables, orders and control", name, settings)
    return Grid(
        name=content.get("name") or path.stem,
        rows=rows,
        points=points,
        tables={title: left for title, names in tables.items() if (left := [name for name in names if name in shown])},
        orders={title: [name for name in names if name in shown] for title, names in orders.items()},
        metrics=content.get("metrics") or [],
        control=control,
        folds=bool(content.get("folds")),
    )


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
    scores = {}
    for title, names in grid.tables.items():
        control = grid.control if grid.control in names else names[0]
        scores[title] = score_rows({name: rows[name] for name in names}, known, control)
        of_console = grid.metrics or [metric for metric in known if is_mean(metric)]
        visible = sorted(
            (score for score in scores[title] if score.metric in of_console),
            key=lambda score: of_console.index(score.metric),
        )
        console.print(scores_table(title, visible, titles))
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


def _row_settings(path: Path, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a row on those of the top."""
    own = content["rows"][name] or {}
    if not isinstance(own, Mapping):
        raise ValueError(f"{path}: row {name}: found {own!r}; expected settings, such as `config: FILE`, or nothing.")
    _require_known(f"{path}: row {name}", own, _ROW_KEYS)
    top = {key: content[key] for key in ("config", "command", "run") if key in content}
    options = [content.get("options") or [], own.get("options") or []]
    for several in options:
        _require_list(f"{path}: row {name}: options", several)
    settings = {
        "command": "fit",
        "run": "{row}/seed_{seed}",
        **top,
        **own,
        "options": [str(word) for several in options for word in several],
    }
    if "config" not in settings:
        raise ValueError(f"{path}: row {name}: found no `config`; give one to the row, or one with {{row}} at the top.")
    if settings["command"] not in _COMMANDS:
        raise ValueError(f"{path}: row {name}: found command {settings['command']!r}; expected one of {_COMMANDS}.")
    return settings


def _with_needed(path: Path, settings: Mapping[str, Mapping[str, Any]], chosen: Sequence[str] | None) -> list[str]:
    """The chosen rows and those whose runs they start from, in the order of the file."""
    above: list[str] = []
    needs: dict[str, list[str]] = {}
    for name, row in settings.items():
        parent = str(row.get("parent", ""))
        words = (word.replace("{parent}", parent) for word in row["options"])
        needs[name] = [found for word in words for found in _RUN_OF.findall(word)]
        for needed in [*needs[name], *([parent] if parent else [])]:
            if needed not in above:
                raise ValueError(f"{path}: row {name} starts from {needed!r}; expected a row above it: {above}.")
        above.append(name)
    wanted: set[str] = set()
    for name in chosen if chosen is not None else above:
        _require_row(f"{path}", name, settings)
        wanted.add(name)
    for name in reversed(above):
        if name in wanted:
            wanted.update(needs[name])
    return [name for name in above if name in wanted]


def _point(
    path: Path, name: str, values: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]], extra: Sequence[str]
) -> Point:
    def run_of(row: str) -> str:
        return fill(settings[row]["run"], row)

    def fill(text: str, row: str) -> str:
        known = {**values, "row": row, "parent": settings[row].get("parent", "")}

        def value(match: re.Match[str]) -> str:
            if match[1] not in known:
                raise ValueError(f"{path}: row {row}: found {match[0]} in {text!r}; expected one of {sorted(known)}.")
            return str(known[match[1]])

        return _PLACEHOLDER.sub(value, text)

    row = settings[name]
    options = [_RUN_OF.sub(lambda match: f"{{run:{run_of(match[1])}}}", fill(word, name)) for word in row["options"]]
    before = [row["command"], f"--config={fill(row['config'], name)}", f"--seed_everything={values['seed']}"]
    label = ", ".join([name, *(f"{axis} {value}" for axis, value in values.items())])
    return Point(label, run_of(name), values, [*before, *options, *extra])


def _require_distinct(path: Path, points: Sequence[Point]) -> None:
    by_run: dict[str, Point] = {}
    for point in points:
        if (first := by_run.setdefault(point.run, point)) is not point:
            raise ValueError(
                f"{path}: {first.name} and {point.name} are both called {point.run!r}; tell them apart in `run`, such "
                "as `run: minicity/seed_{seed}/{row}`."
            )


def _require_known(where: str, found: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(map(str, found.keys() - known)):
        raise ValueError(f"{where}: found {unknown}; expected some of {sorted(known)}.")


def _require_list(where: str, found: Any) -> None:
    if not isinstance(found, list):
        raise ValueError(f"{where}: found {found!r}; expected a list, such as [{found}].")


def _require_row(where: str, name: str, settings: Mapping[str, Any]) -> None:
    if name not in settings:
        raise ValueError(f"{where}: found no row {name!r}; its rows are {list(settings)}.")
