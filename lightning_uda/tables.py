"""Tables: of classes on the console, and as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich
from rich.bar import Bar
from rich.box import HORIZONTALS
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lightning_uda.files import read_text, replace_file

Kind = type[str] | type[int] | type[float]
_KINDS: Mapping[Kind, str] = {str: "a text", int: "a whole number", float: "a number"}
WHOLE_COPY = "Put a whole copy of the file in its place, or move it away."
"""What the user does about a damaged file of a run."""


@dataclass(frozen=True)
class Row:
    """One row of a table on the console.

    Attributes:
        label: What the row is about, such as the name of a class.
        cells: Its cells, one for each further column.
        color: Colour (0-255) of the class, drawn before the label; `None` for rows that are no class.
        style: Style of the whole row, such as "bold" for a mean.
        section: Whether a line is drawn above the row.
    """

    label: str
    cells: Sequence[RenderableType]
    color: tuple[int, int, int] | None = None
    style: str = ""
    section: bool = False


def console_table(title: str, columns: Sequence[str], rows: Iterable[Row]) -> Table:
    """A table for the console.

    Args:
        title: Its heading.
        columns: Headings of the columns; the first is that of the labels.
        rows: Rows of as many cells as there are further columns.
    """
    table = Table(title=title, title_style="bold", title_justify="left", header_style="dim", box=HORIZONTALS)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        if row.section:
            table.add_section()
        swatch = Text(f"{2 * block()} ", style="rgb({},{},{})".format(*row.color)) if row.color else Text()
        table.add_row(swatch + Text(row.label), *row.cells, style=row.style)
    return table


def percent(value: float | None) -> str:
    """One decimal, or a dash where there is no value."""
    return "-" if value is None or value != value else f"{value:.1f}"


def block() -> str:
    """What coloured patches are made of: "#" where the console's encoding has no blocks, as cp1252 hasn't."""
    return "#" if rich.get_console().options.ascii_only else "█"


def plus_minus() -> str:
    """What stands before a deviation: "+-" where the console's encoding lacks the sign."""
    try:
        "±".encode(rich.get_console().encoding)
    except UnicodeEncodeError:
        return "+-"
    return "±"


def percent_bar(value: float) -> RenderableType:
    """A bar for a value in percent; none where there is no value."""
    if rich.get_console().options.ascii_only:
        return Text("#" * (0 if value != value else round(value / 5)), style="cyan")
    return Bar(size=100, begin=0, end=0 if value != value else value, width=20, color="cyan")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The content of a CSV file; cells of `None` and NaN are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell != cell else cell for cell in row] for row in rows)
    return text.getvalue()


def read_rows(path: Path, kinds: Mapping[str, Kind] | None = None) -> list[dict[str, str]]:
    """The rows of a CSV file, each from column to cell; see `read_table`."""
    return read_table(path, kinds)[1]


def read_table(path: Path, kinds: Mapping[str, Kind] | None = None) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; cells that a row lacks are empty.

    Args:
        path: The file; an empty one has neither columns nor rows.
        kinds: Columns that it needs, and what their cells are to be.

    Raises:
        ValueError: If the file is no table in UTF-8, lacks such a column, or has another cell there.
    """
    return _table(path, read_text(path), kinds or {})


def read_log(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a table that a run adds rows to, each with its `step`, such as `metrics.csv`.

    A row that a kill left half written at its end is left out.

    Raises:
        ValueError: If it is no such table.
    """
    text = read_text(path)
    return _table(path, text[: text.rfind("\n") + 1], {"step": int})


def _table(path: Path, text: str, kinds: Mapping[str, Kind]) -> tuple[list[str], list[dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    try:
        columns, rows = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}: can't be read as CSV ({error}). {WHOLE_COPY}") from error
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"{path}: found more cells in row {number} than the {len(columns)} columns. {WHOLE_COPY}")
    for name, kind in kinds.items() if columns else ():
        if name not in columns:
            raise ValueError(f"{path}: found no column {name!r}; its columns are {columns[:8]}. {WHOLE_COPY}")
        _require(path, rows, name, kind)
    return columns, rows


def require_numbers(path: Path, columns: Iterable[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Checks that each cell of a table is a number or empty.

    Args:
        path: The file that it was read from.
        columns: Its columns.
        rows: Its rows.

    Raises:
        ValueError: If one isn't.
    """
    for name in columns:
        _require(path, [{name: row[name] or "nan"} for row in rows], name, float)


def _require(path: Path, rows: Sequence[Mapping[str, str]], column: str, kind: Kind) -> None:
    for number, row in enumerate(rows, start=1):
        try:
            kind(row[column])
        except ValueError as error:
            raise ValueError(
                f"{path}: found {row[column][:40]!r} as {column!r} in row {number}; expected {_KINDS[kind]}. "
                f"{WHOLE_COPY}"
            ) from error


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file, which takes the place of an old one in one move; cells that a row lacks are empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = csv_text(columns, ([row.get(name, "") for name in columns] for row in rows))
    replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a CSV file with one header, keeping all earlier rows.

    Columns that the file lacks are added to it. The new file takes the place of the old in one move, so that an
    interruption never leaves half a table.

    Args:
        path: The file; made if it isn't there.
        row: Column to value; floats are rounded to four places, NaN becomes an empty cell.
    """
    rows: list[Mapping[str, Any]] = [*read_rows(path)] if path.is_file() else []
    rows.append({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    write_table(path, list(dict.fromkeys(name for one in rows for name in one)), rows)
