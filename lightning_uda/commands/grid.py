"""`lightning-uda grid`: the runs of a table, rows x seeds, and the table of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_uda.commands.grid_file import read_grid
from lightning_uda.commands.options import CommandParser
from lightning_uda.commands.runner import Point, Runner, split_options
from lightning_uda.config_files import find_config
from lightning_uda.ranges import COUNT, require


def run_grid(arguments: list[str]) -> None:
    """Runs the points of a grid file that aren't done, and tabulates all.

    Args:
        arguments: `FILE [--seeds N ...] [--rows NAME ...] [--axes NAME=VALUE ...] [--folders NAME=FOLDER ...]
            [--output DIR] [--figures FILE] [--jobs N] [--dry-run] [-- options]`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no grid.
        SystemExit: If options of a point are refused, a point fails, or the user stops the grid.
    """
    own, extra = split_options(arguments)
    parser = CommandParser(
        prog="lightning-uda grid",
        usage="%(prog)s FILE [options] [-- options of every run]",
        description="Runs the rows of a table over seeds and tabulates mean, deviation and the difference from a "
        "control. Points that are done are left as they are, so that the same command goes on after a stop.",
    )
    parser.add_argument("file", help="Grid file, or the name of a shipped one, such as minicity.")
    parser.add_argument("--seeds", type=int, nargs="+", help="Seeds instead of those of the file.")
    parser.add_argument("--rows", nargs="+", help="These rows only, and those that they start from.")
    parser.add_argument("--axes", nargs="+", default=[], help="These values of the file's axes only, such as fold=0.")
    parser.add_argument(
        "--folders", nargs="+", default=[], help="Where the data are that the file names, such as gta5=data/gta5."
    )
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
    require(COUNT, chosen.jobs, "--jobs")
    from lightning_uda.commands.figures import FiguresFile  # brings torch, which help does without
    from lightning_uda.commands.grid_tables import figures_of_run, tabulate

    grid = read_grid(find_config(chosen.file, "grids"), chosen.seeds, chosen.rows, extra, chosen.axes, chosen.folders)
    file = FiguresFile(chosen.figures, tuple(grid.points[0].values)) if chosen.figures else None
    rows_of = {point.run: name for name, row in grid.rows.items() for point in row.points}
    figures: dict[str, dict[str, float]] = {}
    for point in grid.points:
        if file and (found := file.find(rows_of[point.run], point.values)) is not None:
            figures[point.run] = found

    def record(point: Point, folder: Path) -> None:
        if point.run in figures or (found := figures_of_run(grid, folder)) is None:
            return
        figures[point.run] = file.add(rows_of[point.run], point.values, found, folder) if file else found

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
