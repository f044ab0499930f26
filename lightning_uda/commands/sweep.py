"""Grids of runs, one after another: the sweep files of Weights & Biases (W&B) on machines without it."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich
import yaml
from rich.table import Table
from rich.text import Text

from lightning_uda.cli import run_trainer
from lightning_uda.files import write_beside_older
from lightning_uda.report import ReportError, Run, build_report, load_runs
from lightning_uda.report.notes import print_notes
from lightning_uda.tables import Row, console_table, csv_text, percent

STAMP = "sweep_point.json"
"""Name of the file that a run folder gets when its point is done; it holds the arguments of the run."""

_KEYS = {"program", "name", "description", "project", "entity", "method", "metric", "parameters", "command"}
_PROGRAMS = ("lightning-uda", "lightning_uda")


@dataclass(frozen=True)
class Point:
    """One point of a grid.

    Attributes:
        name: What tells it from the others, such as "beta=0.8"; the name of its folder.
        values: Value of each parameter of the sweep file.
        arguments: Arguments of `lightning-uda` that train it, without name and output folder.
    """

    name: str
    values: Mapping[str, Any]
    arguments: list[str]


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
        ValueError: If the file is no grid that can be run here.
        SystemExit: If options of a point are refused, a point fails, or the user stops the sweep.
    """
    own, extra = _split(arguments)
    parser = argparse.ArgumentParser(
        prog="lightning-uda sweep",
        usage="%(prog)s FILE [options] [-- options of fit]",
        description="Trains the points of a W&B sweep file one after another, without W&B, and tabulates them. Points "
        "that are done are left as they are, so that the same command goes on after a stop.",
    )
    parser.add_argument("file", type=Path, help="Sweep file of W&B, with `method: grid`.")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="Folder of all runs.")
    parser.add_argument("--dry-run", action="store_true", help="Show the points and their commands only.")
    chosen = parser.parse_args(own)
    sweep, output, console = read_sweep(chosen.file, extra), chosen.output, rich.get_console()
    to_do = [point for point in sweep.points if _finished_run(sweep, point, output) is None]
    for point in to_do:
        check_arguments(point)
    if chosen.dry_run:
        for point in sweep.points:
            state = "to do" if point in to_do else "done"
            command = shlex.join(["lightning-uda", *_arguments(sweep, point, output)])
            console.print(f"{point.name} ({state}): {command}", soft_wrap=True, markup=False, highlight=False)
        return
    failed = []
    for number, point in enumerate(sweep.points, start=1):
        title = f"{sweep.name} {number}/{len(sweep.points)}: {point.name}"
        console.rule(f"{title}, done before" if point not in to_do else title, style="dim")
        if point in to_do and not _train(sweep, point, output):
            failed.append(point.name)
    tabulate(sweep, output)
    if failed:
        what = f"{len(failed)} of {len(sweep.points)} points failed, {', '.join(failed)}"
        sys.exit(f"error: {what}. Their messages are above. The same command tries them again.")


def read_sweep(path: Path, extra: Sequence[str] = ()) -> Sweep:
    """Reads a W&B sweep file and forms its grid.

    Args:
        path: YAML file with `method: grid`, `parameters` (each with `value` or `values`) and a `command` that calls
            `lightning-uda fit` and holds `${args}`.
        extra: Further arguments of every run.

    Raises:
        ValueError: If it is none, or W&B alone can run it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: can't be read as YAML: {error}") from error
    if not isinstance(content, Mapping) or not {"method", "parameters", "command"} <= content.keys():
        raise ValueError(f"{path}: expected a W&B sweep file, with `method`, `parameters` and `command`.")
    if content["method"] != "grid" or not content.keys() <= _KEYS:
        found = sorted(content.keys() - _KEYS) or f"method: {content['method']}"
        raise ValueError(
            f"{path}: found {found}, but without W&B only plain grids are run. Set `method: grid` without such keys, "
            f"or use W&B: `wandb sweep {path}`, then the `wandb agent` command that it prints."
        )
    before, after = _command(path, content)
    parameters = {name: _values(path, name, spec) for name, spec in content["parameters"].items()}
    swept = [name for name, spec in content["parameters"].items() if "values" in spec]
    points = []
    for combination in itertools.product(*parameters.values()):
        values = dict(zip(parameters, combination, strict=True))
        flags = [f"--{name}={value}" for name, value in values.items()]  # as W&B's agent writes them
        points.append(Point(_point_name(swept, values), values, [*before, *flags, *after, *extra]))
    names = [point.name for point in points]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: found several points of one name: {doubles}; expected distinct `values`.")
    metric = (content.get("metric") or {}).get("name", "val/miou")
    return Sweep(content.get("name") or path.stem, metric, points)


def check_arguments(point: Point) -> None:
    """Parses the arguments of a point as `fit` would.

    Raises:
        SystemExit: If they are refused; the parser has said why.
    """
    try:
        with redirect_stdout(io.StringIO()):
            run_trainer([*point.arguments, "--print_config"])
    except SystemExit as end:
        if end.code:
            sys.exit(f"error: point {point.name} can't be run: lightning-uda {shlex.join(point.arguments)}")


def tabulate(sweep: Sweep, output: Path) -> None:
    """Prints last and best value of each point, and writes `sweep.csv` and `report.html` into the sweep's folder.

    Tables and pages that are there already are kept as `<stem>.<n><suffix>`.
    """
    folders = {point.name: _finished_run(sweep, point, output) for point in sweep.points}
    runs = {name: _load(folder) for name, folder in folders.items()}
    rows = {name: _scores(run, sweep.metric) for name, run in runs.items()}
    console, folder = rich.get_console(), output / sweep.name
    console.print(_table(sweep, rows))
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


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end + 1 :])


def _command(path: Path, content: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Arguments of `lightning-uda` before and after `${args}`."""
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


def _arguments(sweep: Sweep, point: Point, output: Path) -> list[str]:
    return [*point.arguments, "--output", str(output), "--name", f"{sweep.name}/{point.name}"]


def _train(sweep: Sweep, point: Point, output: Path) -> bool:
    """Trains a point in a process of its own; gives whether it ended well."""
    folder = output / sweep.name / point.name
    before = set(folder.glob("version_*"))
    command = [sys.executable, "-m", "lightning_uda", *_arguments(sweep, point, output)]
    try:
        status = subprocess.run(command, env={"WANDB_MODE": "disabled", **os.environ}).returncode
    except KeyboardInterrupt:
        sys.exit(f"stopped in {point.name}; the same command goes on with it.")
    new = set(folder.glob("version_*")) - before
    if status or not new:
        return False
    (new.pop() / STAMP).write_text(json.dumps({"arguments": point.arguments}, indent=1) + "\n", encoding="utf-8")
    return True


def _finished_run(sweep: Sweep, point: Point, output: Path) -> Path | None:
    """Run folder of a point that was trained to the end with these arguments."""
    for stamp in (output / sweep.name / point.name).glob(f"version_*/{STAMP}"):
        if json.loads(stamp.read_text(encoding="utf-8"))["arguments"] == point.arguments:
            return stamp.parent
    return None


def _load(folder: Path | None) -> Run | None:
    try:
        return load_runs([folder])[0] if folder else None
    except ReportError:
        return None


def _scores(run: Run | None, metric: str) -> tuple[float | None, float | None, int | None]:
    """Last value, best value and its step; `None` where there are none."""
    steps, values = run.scores(metric.rpartition("/")[2]) if run else ([], [])
    if not values:
        return None, None, None
    best, step = max(zip(values, steps, strict=True))
    return round(values[-1], 4), round(best, 4), step


def _table(sweep: Sweep, rows: Mapping[str, tuple[float | None, float | None, int | None]]) -> Table:
    top_last, top_best, _ = (max(filter(None, column), default=None) for column in zip(*rows.values(), strict=True))
    lines = []
    for name, (last, best, step) in rows.items():
        cells = [
            Text(percent(value), style="bold" if value is not None and value == top else "")
            for value, top in ((last, top_last), (best, top_best))
        ]
        lines.append(Row(name, [*cells, "-" if step is None else str(step)]))
    return console_table(f"{sweep.name}: {sweep.metric} in %", ["point", "last", "best", "at step"], lines)
