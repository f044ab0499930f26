"""Grids of runs, one after another: the sweep files of Weights & Biases (W&B) on machines without it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich
from rich.table import Table
from rich.text import Text

from lightning_uda.commands.options import CommandParser
from lightning_uda.commands.runner import Point, Runner, load_run, split_options
from lightning_uda.config_files import find_config, read_config
from lightning_uda.files import write_beside_older
from lightning_uda.tables import Row, console_table, csv_text, percent

if TYPE_CHECKING:
    from lightning_uda.report import Run

_KEYS = {"program", "name", "description", "project", "entity", "method", "metric", "parameters", "command"}
_PROGRAMS = ("lightning-uda", "lightning_uda")


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        name: The sweep's name, by default that of the file; its folder below the output folder.
        metric: What is tabulated, such as "val/miou".
        points: The grid; the last parameter changes fastest.
    """

    name: str
    metric: str
    points: list[Point]


def sweep_runs(arguments: list[str]) -> None:
    """Trains the points of a W&B sweep file one after another, without W&B, and tabulates them.

    A point that is done is left as it is, so that the same command goes on after a stop; it is trained again, beside
    the old run, where options differ (changes inside config files aren't noticed). A point that fails is named at the
    end. Options after `--` go to every `fit`.

    Args:
        arguments: `FILE [--output DIR] [--dry-run] [-- options of fit]`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no grid that can be run here.
        SystemExit: If options of a point are refused, a point fails, or the user stops the sweep.
    """
    own, extra = split_options(arguments)
    parser = CommandParser(
        prog="lightning-uda sweep",
        usage="%(prog)s FILE [options] [-- options of fit]",
        description="Trains the points of a W&B sweep file one after another, without W&B, and tabulates them. Points "
        "that are done are left as they are, so that the same command goes on after a stop.",
    )
    parser.add_argument("file", help="Sweep file of W&B, with `method: grid`, or the name of a shipped one.")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="Folder of all runs.")
    parser.add_argument("--dry-run", action="store_true", help="Show the points and their commands only.")
    chosen = parser.parse_args(own)
    sweep = read_sweep(find_config(chosen.file, "sweeps"), extra)
    runner = Runner(sweep.name, sweep.points, chosen.output)
    runner.check(runner.to_do())
    if chosen.dry_run:
        runner.show()
        return
    runner.run()
    tabulate(sweep, runner, chosen.output / sweep.name)
    runner.require_all()


def read_sweep(path: Path, extra: Sequence[str] = ()) -> Sweep:
    """Reads a W&B sweep file and forms its grid.

    Args:
        path: YAML file with `method: grid`, `parameters` (each with `value` or `values`) and a `command` that calls
            `lightning-uda fit` and holds `${args}`.
        extra: Further arguments of every run.

    Raises:
        ValueError: If it is none, or W&B alone can run it.
    """
    content = read_config(path)
    if not isinstance(content, Mapping) or not {"method", "parameters", "command"} <= content.keys():
        raise ValueError(f"{path}: expected a W&B sweep file, with `method`, `parameters` and `command`.")
    if content["method"] != "grid" or not content.keys() <= _KEYS:
        found = sorted(content.keys() - _KEYS) or f"method: {content['method']}"
        raise ValueError(
            f"{path}: found {found}, but without W&B only plain grids are run. Set `method: grid` without such keys, "
            f"or use W&B: `wandb sweep {path}`, then the `wandb agent` command that it prints."
        )
    before, after = _command(path, content)
    metric = content.get("metric") or {}
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name", ""), str):
        raise ValueError(f"{path}: found metric {metric!r}; expected its `name`, such as val/miou, and its `goal`.")
    if not isinstance(content["parameters"], Mapping) or not isinstance(content.get("name", ""), str | None):
        raise ValueError(
            f"{path}: found parameters {content['parameters']!r} and name {content.get('name')!r}; expected each "
            "parameter with its `value` or `values`, and a text as the name."
        )
    if unnamed := [name for name in content["parameters"] if not isinstance(name, str)]:
        raise ValueError(f"{path}: found the parameters {unnamed}; expected names of options, such as model.beta.")
    parameters = {name: _values(path, name, spec) for name, spec in content["parameters"].items()}
    swept = [name for name, spec in content["parameters"].items() if "values" in spec]
    name = content.get("name") or path.stem
    points = []
    for combination in itertools.product(*parameters.values()):
        values = dict(zip(parameters, combination, strict=True))
        flags = [f"--{name}={value}" for name, value in values.items()]  # as W&B's agent writes them
        point = _point_name(swept, values)
        points.append(Point(point, f"{name}/{point}", values, [*before, *flags, *after, *extra]))
    names = [point.name for point in points]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: found several points of one name: {doubles}; expected distinct `values`.")
    return Sweep(name, metric.get("name", "val/miou"), points)


def tabulate(sweep: Sweep, runner: Runner, folder: Path) -> None:
    """Prints last and best value of each point, and writes `sweep.csv` and `report.html` into the sweep's folder.

    Tables and pages that are there already are kept as `<stem>.<n><suffix>`.
    """
    from lightning_uda.metrics import MIOU_NOTE  # brings torch, and the report matplotlib, which help does without
    from lightning_uda.metrics.columns import is_mean
    from lightning_uda.report import build_report
    from lightning_uda.report.notes import print_notes

    folders = {point.name: runner.folder(point) for point in sweep.points}
    runs = {name: load_run(place) for name, place in folders.items()}
    rows = {name: _scores(run, sweep.metric) for name, run in runs.items()}
    console = rich.get_console()
    console.print(_table(sweep, rows))
    if is_mean(sweep.metric.rpartition("/")[2]):
        console.print(MIOU_NOTE, style="dim", highlight=False)
    loaded = [run for run in runs.values() if run is not None]
    print_notes(loaded, console)
    columns = [*sweep.points[0].values, f"{sweep.metric}_last", f"{sweep.metric}_best", "best_step", "run"]
    text = csv_text(
        columns, [[*point.values.values(), *rows[point.name], folders[point.name]] for point in sweep.points]
    )
    written = [folder / "sweep.csv"]
    if not written[0].is_file() or written[0].read_text(encoding="utf-8") != text:
        write_beside_older(written[0], text)
    if loaded:
        written.append(build_report([run.folder for run in loaded], folder / "report.html"))
    for path in written:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _command(path: Path, content: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Arguments of `lightning-uda` before and after `${args}`."""
    if not isinstance(content["command"], list):
        raise ValueError(
            f"{path}: found the command {content['command']!r}; expected a list of words, such as [lightning-uda, fit, "
            "'${args}']."
        )
    words = [str(content.get("program") if word == "${program}" else word) for word in content["command"]]
    start = words.index("fit") if "fit" in words else 0
    arguments = words[start:]
    macros = [word for word in arguments if word.startswith("${")]
    if start == 0 or Path(words[start - 1]).name not in _PROGRAMS or macros != ["${args}"]:
        raise ValueError(
            f"{path}: found the command {words}; expected `lightning-uda`, `fit`, its options and once `${{args}}`."
        )
    place = arguments.index("${args}")
    return arguments[:place], arguments[place + 1 :]


def _values(path: Path, name: str, spec: Any) -> list[Any]:
    if isinstance(spec, Mapping) and spec.keys() == {"value"}:
        return [spec["value"]]
    if isinstance(spec, Mapping) and spec.keys() == {"values"} and isinstance(spec["values"], list) and spec["values"]:
        return list(spec["values"])
    raise ValueError(f"{path}: parameter {name}: found {spec}; expected `value`, or `values` with a list.")


def _point_name(swept: Sequence[str], values: Mapping[str, Any]) -> str:
    """Last parts of the swept parameters' names, or the full names where these are equal, with their values."""
    short = [name.rpartition(".")[2] for name in swept]
    labels = short if len(set(short)) == len(short) else swept
    parts = [f"{label}={values[name]}" for label, name in zip(labels, swept, strict=True)]
    return re.sub(r"[^\w.,=+-]+", "_", ",".join(parts)) or "run"


def _scores(run: Run | None, metric: str) -> tuple[float | None, float | None, int | None]:
    """Last value, best value and its step; `None` where there are none."""
    column = metric.rpartition("/")[2]
    if run is None or (found := run.best(column)) is None:
        return None, None, None
    step, best = found
    return round(run.scores(column)[1][-1], 4), round(best, 4), step


def _table(sweep: Sweep, rows: Mapping[str, tuple[float | None, float | None, int | None]]) -> Table:
    top_last, top_best, _ = (max(filter(None, column), default=None) for column in zip(*rows.values(), strict=True))
    lines = []
    for name, (last, best, step) in rows.items():
        cells = [
            Text(percent(value), style="bold" if value is not None and value == top else "")
            for value, top in ((last, top_last), (best, top_best))
        ]
        lines.append(Row(name, [*cells, "-" if step is None else str(step)]))
    table = console_table(f"{sweep.name}: {sweep.metric} in %", ["point", "last", "best", "at step"], lines)
    table.caption = "The best step is chosen with target labels."
    return table
