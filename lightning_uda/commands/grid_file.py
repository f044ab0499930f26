"""Grid files: the rows of a table, and the runs that they are made of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_uda.commands.runner import Point
from lightning_uda.config_files import read_config
from lightning_uda.files import require_run_name

_ROW_KEYS = {"title", "parent", "config", "command", "run", "options"}
_KEYS = {"name", "seeds", "axes", "folders", "rows", "tables", "orders", "metrics", "control", "folds"} | _ROW_KEYS - {
    "title",
    "parent",
}
_TEXTS = {"name", "control", "title", "parent", "config", "run"}
_NEEDED = {"config", "run"}
_COMMANDS = ("fit", "validate", "test")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_RUN_OF = re.compile(r"\{run:([^{}]+)\}")


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


def read_grid(
    path: Path,
    seeds: Sequence[int] | None = None,
    chosen: Sequence[str] | None = None,
    extra: Sequence[str] = (),
    kept: Sequence[str] = (),
    folders: Sequence[str] = (),
) -> Grid:
    """Reads a grid file.

    It is YAML with `rows`: the name of each with its settings, which go over those of the same names at the top:
    `config` (file), `command` (`fit`, `validate` or `test`), `run` (name of the run, its folder below the output
    folder), and `options`, a list which is added to that of the top. Further settings of a row are its `title` and its
    `parent`, a row above it that it belongs to. At the top stand `name`, `seeds`, `axes` (further values that make
    points, such as `fold: [0, 1]`), `folders` (such as `gta5: data/gta5`), `tables` (title to list of rows), `orders`
    (name of an order that is claimed to its rows, the lowest first), `metrics`, `control` and `folds`.

    In `config`, `run` and `options`, `{seed}`, `{row}`, `{parent}` and the names of axes and folders in braces stand
    for their values, and `{run:ROW}` in `options` for the run folder of a row above, of the same seed.

    Args:
        path: The file.
        seeds: Seeds instead of the file's.
        chosen: Names of rows to run; `None` for all.
        extra: Further arguments of every run.
        kept: Values of axes to run, `NAME=VALUE` each; an axis that none of them names keeps all of its values.
        folders: Folders instead of the file's, `NAME=FOLDER` each.

    Raises:
        ValueError: If it is no such file, or a chosen row, value or folder isn't in it.
    """
    content = read_config(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("rows"), Mapping) or not content["rows"]:
        raise ValueError(f"{path}: expected a grid file, with `rows`: the name of each row with its settings.")
    _require_names(f"{path}: rows", content["rows"])
    _require_known(f"{path}", content, _KEYS)
    settings = {name: _row_settings(path, name, content) for name in content["rows"]}
    for what in ("axes", "tables", "orders", "folders"):
        if not isinstance(content.get(what) or {}, Mapping):
            example = "folders by name, such as {a: b}" if what == "folders" else "lists by name, such as {a: [b, c]}"
            raise ValueError(f"{path}: {what}: found {content[what]!r}; expected {example}.")
        _require_names(f"{path}: {what}", content.get(what) or {})
    for where, part in ((str(path), content), *((f"{path}: row {name}", row) for name, row in settings.items())):
        for what in _TEXTS & part.keys():
            _require_text(f"{where}: {what}", part[what], needed=what in _NEEDED)
    axes = {"seed": seeds or content.get("seeds") or [0], **(content.get("axes") or {})}
    for axis, several in axes.items():
        _require_some(f"{path}: {'seeds' if axis == 'seed' else axis}", several)
    axes = _with_kept(path, axes, kept)
    places = _with_given(path, content.get("folders") or {}, folders)
    if taken := places.keys() & {*axes, "row", "parent"}:
        raise ValueError(f"{path}: folders: found {sorted(taken)}, which have another meaning; give other names.")
    wanted = _with_needed(path, settings, chosen)
    rows = {name: Row(str(settings[name].get("title") or name.replace("_", " ")), []) for name in wanted}
    for values in (dict(zip(axes, one, strict=True)) for one in itertools.product(*axes.values())):
        for name, row in rows.items():
            row.points.append(_point(path, name, values, places, settings, extra))
    points = list(itertools.chain(*zip(*(row.points for row in rows.values()), strict=True)))
    _require_distinct(path, points)
    shown = [name for name in rows if chosen is None or name in chosen]
    tables = content.get("tables") or {content.get("name") or path.stem: list(settings)}
    orders = content.get("orders") or {}
    control = content.get("control")
    _require_list(f"{path}: metrics", content.get("metrics") or [])
    for what, lists in (("tables", tables), ("orders", orders)):
        for title, names in lists.items():
            _require_some(f"{path}: {what}: {title}", names)
    for name in [*(content.get("metrics") or []), *itertools.chain(*tables.values(), *orders.values())]:
        _require_text(f"{path}: metrics, tables and orders", name, needed=True)
    for name in [*itertools.chain(*tables.values(), *orders.values()), *([control] if control else [])]:
        _require_row(f"{path}: tables, orders and control", name, settings)
    name = content.get("name") or path.stem
    require_run_name(name, f"{path}: name")
    return Grid(
        name=name,
        rows=rows,
        points=points,
        tables={title: left for title, names in tables.items() if (left := [name for name in names if name in shown])},
        orders={title: [name for name in names if name in shown] for title, names in orders.items()},
        metrics=content.get("metrics") or [],
        control=control,
        folds=bool(content.get("folds")),
    )


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


def _with_kept(path: Path, axes: Mapping[str, Sequence[Any]], kept: Sequence[str]) -> dict[str, list[Any]]:
    """The axes, those of which values are kept with these alone."""
    by_text = {f"{axis}={value}": (axis, value) for axis, several in axes.items() for value in several}
    left: dict[str, list[Any]] = {}
    for text in kept:
        if text not in by_text:
            raise ValueError(f"{path}: --axes: found {text!r}; expected some of {list(by_text)}.")
        axis, value = by_text[text]
        left.setdefault(axis, []).append(value)
    return {axis: left.get(axis, list(several)) for axis, several in axes.items()}


def _with_given(path: Path, folders: Mapping[str, Any], given: Sequence[str]) -> dict[str, str]:
    """The folders, those that are given with their new place."""
    for name, folder in folders.items():
        _require_text(f"{path}: folders: {name}", folder, needed=True)
    found = dict(folders)
    for text in given:
        name, _, folder = text.partition("=")
        if name not in found or not folder:
            expected = [f"{known}=FOLDER" for known in found] or "none, as the file names no folders"
            raise ValueError(f"{path}: --folders: found {text!r}; expected {expected}.")
        found[name] = folder
    return found


def _point(
    path: Path,
    name: str,
    values: Mapping[str, Any],
    folders: Mapping[str, str],
    settings: Mapping[str, Mapping[str, Any]],
    extra: Sequence[str],
) -> Point:
    def run_of(row: str) -> str:
        return fill(settings[row]["run"], row)

    def fill(text: str, row: str) -> str:
        known = {**folders, **values, "row": row, "parent": settings[row].get("parent", "")}

        def value(match: re.Match[str]) -> str:
            if match[1] not in known:
                raise ValueError(f"{path}: row {row}: found {match[0]} in {text!r}; expected one of {sorted(known)}.")
            return str(known[match[1]])

        return _PLACEHOLDER.sub(value, text)

    row = settings[name]
    options = [_RUN_OF.sub(lambda match: f"{{run:{run_of(match[1])}}}", fill(word, name)) for word in row["options"]]
    before = [row["command"], f"--config={fill(row['config'], name)}", f"--seed_everything={values['seed']}"]
    require_run_name(run_of(name), f"{path}: row {name}: run")
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


def _require_names(where: str, found: Mapping[Any, Any]) -> None:
    for name in found:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: found the name {name!r}; expected a text. Put it in quotes.")


def _require_list(where: str, found: Any) -> None:
    if not isinstance(found, list):
        raise ValueError(f"{where}: found {found!r}; expected a list, such as [{found}].")


def _require_some(where: str, found: Any) -> None:
    _require_list(where, found)
    if not found:
        raise ValueError(f"{where}: found an empty list; expected something in it. Leave it out otherwise.")


def _require_text(where: str, found: Any, needed: bool = False) -> None:
    if not isinstance(found, str if needed else str | None) or (needed and not found):
        raise ValueError(f"{where}: found {found!r}; expected a text.")


def _require_row(where: str, name: str, settings: Mapping[str, Any]) -> None:
    if name not in settings:
        raise ValueError(f"{where}: found no row {name!r}; its rows are {list(settings)}.")
