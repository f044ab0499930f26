"""One table and one self-contained HTML page of several runs."""

from __future__ import annotations

import base64
import csv
import io
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import rich
import yaml
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from lightning_uda.data.label_spaces import LABEL_SPACES, LabelSpace, get_label_space

_FILES = ("metrics.csv", "iou.csv")
_RUN_COLORS = ("#7f8ea8", "#0d9f8f", "#d98a06", "#8b5cf6", "#e0466a", "#3f8f3f", "#2f7fd6", "#a0642c")
_LOSS_COLORS = ("#2f7fd6", "#e8743b", "#8b5cf6", "#3f9f5f", "#d6457e", "#b08a00")
_INK = "#010203"
_TRAIN_TILES = {
    "source": "source image",
    "target": "target image",
    "mixed_image": "mixed image",
    "mixed_mask": "mixed label",
    "pixel_weights": "pixel weights",
}
_PHOTOS = ("image", "source image", "target image", "mixed image")
_MAX_TRAIN_ROWS = 2
_PACKAGES = ("lightning-uda", "torch", "torchvision", "lightning", "torchmetrics", "timm", "numpy")


class ReportError(ValueError):
    """A report can't be made of these runs; the message names the folder and the fix."""


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        folder: The folder with `metrics.csv` and `iou.csv`.
        title: Short name for headings, distinct among the runs of a report.
        config: Content of `config.yaml`; empty if there is none.
        metrics: Rows of `metrics.csv`.
        evaluations: Rows of `iou.csv` of one stage, one for each step, ascending.
    """

    folder: Path
    title: str
    config: dict[str, Any]
    metrics: list[dict[str, str]]
    evaluations: list[dict[str, str]]

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of train ids."""
        return [column.removeprefix("iou_") for column in self.evaluations[-1] if column.startswith("iou_")]

    @property
    def means(self) -> list[str]:
        """Columns of mean IoUs: `miou` and `miou_<subset>`."""
        return [column for column in self.evaluations[-1] if column.startswith("miou")]

    @property
    def last_step(self) -> int:
        """The step that the run got to."""
        logged = [int(row["step"]) + 1 for row in self.metrics if row.get("step")]
        return max([*logged, int(self.evaluations[-1]["step"])])

    @property
    def max_steps(self) -> int | None:
        """The step that the run was to end at, if its config says so."""
        steps = self.config.get("trainer", {}).get("max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def finished(self) -> bool:
        """Whether the run got to its last step, as far as logged metrics can tell."""
        if self.max_steps is None:
            return True
        interval = self.config["trainer"].get("log_every_n_steps") or 50
        return self.last_step + int(interval) > self.max_steps

    def value(self, column: str) -> float | None:
        """A column of the last evaluation, in percent."""
        return _number(self.evaluations[-1].get(column))

    def curve(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of a column of `metrics.csv`, where it has any."""
        points = [(int(row["step"]), _number(row.get(column))) for row in self.metrics if row.get("step")]
        found = [(step, value) for step, value in points if value is not None]
        return [step for step, _ in found], [value for _, value in found]


def report(runs: Sequence[Path], output: Path) -> None:
    """Prints the table of several runs, writes their page, and prints the page's path last.

    Args:
        runs: Run folders, as `build_report` takes them.
        output: The page to write.

    Raises:
        ReportError: If a folder holds no finished evaluation, or the runs have different classes.
    """
    loaded = load_runs(runs)
    console = rich.get_console()
    console.print(_table(loaded))
    for run in loaded:
        if not run.finished:
            console.print(f"{run.title} is not finished: step {run.last_step} of {run.max_steps}.", style="yellow")
    console.print(str(_write_page(loaded, output)), soft_wrap=True, highlight=False, markup=False)


def build_report(runs: Sequence[Path], output: Path) -> Path:
    """Writes one HTML page that needs no other file, no network and no script.

    Args:
        runs: Run folders, in the order of the columns: folders with `metrics.csv` and `iou.csv`, or folders of
            `version_<k>` folders, of which the latest that trained is taken.
        output: The page to write, or the folder of a `report.html`. A page that is there already is kept as
            `<stem>.<n>.html`.

    Returns:
        Path of the page.

    Raises:
        ReportError: If a folder holds no finished evaluation, or the runs have different classes.
    """
    return _write_page(load_runs(runs), output)


def format_table(runs: Sequence[Path]) -> Table:
    """IoU per class and mean IoU of several runs, in percent, and the gain of the last over the first.

    Args:
        runs: Run folders, as `build_report` takes them.

    Returns:
        The table for a console.

    Raises:
        ReportError: If a folder holds no finished evaluation, or the runs have different classes.
    """
    return _table(load_runs(runs))


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads run folders and checks that they can be compared.

    Raises:
        ReportError: If a folder holds no finished evaluation, or the runs have different classes.
    """
    if not folders:
        raise ReportError("Found no run folder; give at least one, such as runs/demo/dacs.")
    runs = [_load_run(Path(folder)) for folder in folders]
    for run in runs[1:]:
        if run.classes != runs[0].classes:
            raise ReportError(
                f"The runs have different label spaces: {runs[0].folder} has {len(runs[0].classes)} classes, "
                f"{run.folder} has {len(run.classes)}; they differ in "
                f"{sorted(set(runs[0].classes) ^ set(run.classes)) or 'their order'}. Report them separately."
            )
    titles = [run.title for run in runs]
    for run, title in zip(runs, titles, strict=True):
        if titles.count(title) > 1:
            run.title = f"{title} ({run.folder.parent.name}/{run.folder.name})"
    return runs


# reading


def _load_run(folder: Path) -> Run:
    version = _version_folder(folder)
    config_file = version / "config.yaml"
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    rows = _read_csv(version / "iou.csv")
    stage = "val" if any(row["stage"] == "val" for row in rows) else "test"
    evaluations = {int(row["step"]): row for row in rows if row["stage"] == stage}
    if not evaluations:
        raise ReportError(f"{version / 'iou.csv'} holds no evaluation; let the run reach its first validation.")
    return Run(
        folder=version,
        title=_title(version, config),
        config=config,
        metrics=_read_csv(version / "metrics.csv"),
        evaluations=[evaluations[step] for step in sorted(evaluations)],
    )


def _version_folder(folder: Path) -> Path:
    """The folder itself if it is one of a run, else the latest version in it that trained."""
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder; expected a run folder, such as runs/demo/dacs.")
    versions = sorted(
        (path for path in folder.glob("version_*") if path.name[8:].isdigit()), key=lambda path: int(path.name[8:])
    )
    complete = [path for path in versions or [folder] if all((path / name).is_file() for name in _FILES)]
    if not complete:
        latest = versions[-1] if versions else folder
        missing = [name for name in _FILES if not (latest / name).is_file()]
        raise ReportError(
            f"Run folder {latest} holds no {' and no '.join(missing)}; expected both metrics.csv and iou.csv, which a "
            "run writes at its first validation. Let the run go on, or give another folder."
        )
    trained = [path for path in complete if any(row["step"] != "0" for row in _read_csv(path / "iou.csv"))]
    return (trained or complete)[-1]


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(cell: str | None) -> float | None:
    value = float(cell) if cell else float("nan")
    return value if np.isfinite(value) else None


def _title(version: Path, config: Mapping[str, Any]) -> str:
    """Name of the run; written as its method is if it is named after it (`source_only`: "Source only")."""
    name = version.resolve().parent.name if version.name.startswith("version_") else version.name
    method = _class_name(config.get("model"))
    if name.replace("_", "").lower() != method.lower():
        return name.replace("_", " ")
    return method if method.isupper() else re.sub(r"(?<=[a-z])([A-Z])", lambda m: " " + m[1].lower(), method)


def _class_name(node: Any) -> str:
    path = node.get("class_path") if isinstance(node, Mapping) else node
    return str(path).rsplit(".", 1)[-1] if path else ""


def _init_args(node: Any) -> Mapping[str, Any]:
    args = node.get("init_args") if isinstance(node, Mapping) else None
    return args if isinstance(args, Mapping) else {}


def _describe(node: Any) -> str:
    """Class of a configured part, and the argument that tells it from others of its class."""
    args = _init_args(node)
    details = [str(args[key]) for key in ("style", "backbone") if args.get(key)]
    return " ".join([_class_name(node), *(f"({detail})" for detail in details)])


def _label_space(run: Run) -> LabelSpace | None:
    """The label space of a run, for its colours; none if it is a file that isn't here any more."""
    name = _init_args(run.config.get("data")).get("label_space")
    try:
        candidates = [*LABEL_SPACES.values(), *([get_label_space(str(name))] if name else [])]
    except ValueError:
        candidates = [*LABEL_SPACES.values()]
    return next((space for space in candidates if list(space.classes) == run.classes), None)


# the table on the console


def _table(runs: Sequence[Run]) -> Table:
    table = Table(title="IoU in %", title_style="bold", title_justify="left", header_style="dim", box=HORIZONTALS)
    table.add_column("class", no_wrap=True)
    for run in runs:
        table.add_column(run.title, justify="right")
    if len(runs) > 1:
        table.add_column("gain", justify="right")
    for row in _rows(runs, _label_space(runs[0])):
        if row["first_mean"]:
            table.add_section()
        swatch = Text("██ ", style="rgb({},{},{})".format(*row["color"])) if row["color"] else Text()
        cells = [Text(cell["text"], style="bold" if cell["best"] else "") for cell in row["cells"]]
        gain = [Text(row["gain"], style={"up": "green", "down": "red"}.get(row["trend"], ""))] if len(runs) > 1 else []
        table.add_row(swatch + Text(row["label"]), *cells, *gain, style="bold" if row["mean"] else "")
    return table


def _rows(runs: Sequence[Run], space: LabelSpace | None) -> Iterable[dict[str, Any]]:
    """Rows of the table, for the console and for the page."""
    means, classes = runs[0].means, runs[0].classes
    for column in [*(f"iou_{name}" for name in classes), *means]:
        values = [run.value(column) for run in runs]
        present = [value for value in values if value is not None]
        gain, trend = _gain(values[0], values[-1])
        name = column.removeprefix("iou_")
        yield {
            "label": _mean_label(column) if column in means else name,
            "mean": column in means,
            "first_mean": column == means[0],
            "color": space.palette[classes.index(name)] if space and column not in means else None,
            "cells": [
                {
                    "text": _percent(value),
                    "width": value or 0.0,
                    "best": len(runs) > 1 and value is not None and value == max(present),
                }
                for value in values
            ],
            "gain": gain,
            "trend": trend,
        }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _gain(first: float | None, last: float | None) -> tuple[str, str]:
    """Difference of two values as they are printed, and whether it is "up", "down" or neither ("")."""
    if first is None or last is None:
        return "-", ""
    gain = round(round(last, 1) - round(first, 1), 1)
    return f"{gain:+.1f}", "up" if gain > 0 else "down" if gain < 0 else ""


def _mean_label(column: str) -> str:
    return "mIoU" if column == "miou" else f"mIoU ({column.removeprefix('miou_')})"


# the page


def _write_page(runs: Sequence[Run], output: Path) -> Path:
    output = Path(output)
    if output.is_dir():
        output = output / "report.html"
    html = _render(runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        output.rename(_free_name(output))
    output.write_text(html, encoding="utf-8")
    return output


def _free_name(path: Path) -> Path:
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return older


def _render(runs: Sequence[Run]) -> str:
    template = resources.files("lightning_uda").joinpath("report.html").read_text(encoding="utf-8")
    space = _label_space(runs[0])
    palette = list(zip(space.classes, space.palette, strict=True)) if space else []
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(
        heading=" vs. ".join(run.title for run in runs) if len(runs) < 4 else f"{len(runs)} runs compared",
        stage="validation" if runs[0].evaluations[-1]["stage"] == "val" else "test",
        cards=[_card(run, runs[0], _run_color(i)) for i, run in enumerate(runs)],
        rows=list(_rows(runs, space)),
        charts=_charts(runs),
        evaluation_rows=_evaluation_pictures(runs),
        training=_training_pictures(runs),
        palette=palette,
        versions=_versions(),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
    )


def _card(run: Run, first: Run, color: str) -> dict[str, Any]:
    """What the page says about one run."""
    data, model = _init_args(run.config.get("data")), _init_args(run.config.get("model"))
    seed = run.config.get("seed_everything")
    sets = [_describe(data[key]) for key in ("source", "target") if data.get(key)]
    steps = f"{run.last_step}" if run.finished else f"{run.last_step} of {run.max_steps}"
    facts = {
        "method": _class_name(run.config.get("model")),
        "data": " → ".join(sets),
        "network": _describe(model.get("network")),
        "steps": f"{run.max_steps or run.last_step}" if run.finished else steps,
        "seed": "" if seed is None else str(seed),
        "time": _duration(run),
        "folder": "/".join(run.folder.parts[-3:]),
    }
    gain, trend = _gain(first.value("miou"), run.value("miou"))
    return {
        "title": run.title,
        "color": color,
        "miou": _percent(run.value("miou")),
        "gain": None if run is first else gain,
        "trend": trend,
        "first": first.title,
        "step": run.evaluations[-1]["step"],
        "unfinished": None if run.finished else f"not finished: step {steps}",
        "facts": {name: value for name, value in facts.items() if value},
    }


def _duration(run: Run) -> str:
    """When the run began and how long it took, as its files' times tell."""
    end = datetime.fromtimestamp(max((run.folder / name).stat().st_mtime for name in _FILES))
    config = run.folder / "config.yaml"
    begin = datetime.fromtimestamp(config.stat().st_mtime) if config.is_file() else end
    took = timedelta(seconds=int((end - begin).total_seconds()))
    return f"{begin:%Y-%m-%d %H:%M}, took {took}" if took > timedelta(0) else f"{end:%Y-%m-%d %H:%M}"


def _versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _run_color(index: int) -> str:
    return _RUN_COLORS[index % len(_RUN_COLORS)]


# pictures


def _evaluation_pictures(runs: Sequence[Run]) -> list[list[dict[str, Any]]]:
    """For each evaluated image: the image, its label, and every run's prediction."""
    found = [_tiles(run, ("val_0_image.png", "test_0_image.png")) for run in runs]
    rows: list[list[dict[str, Any]]] = []
    if found[0] is None:
        return rows
    folder, stage = found[0][0], found[0][1].split("_")[0]
    while (image := folder / f"{stage}_{len(rows)}_image.png").is_file():
        prefix = f"{stage}_{len(rows)}"
        row = [_figure(image, "image"), _figure(folder / f"{prefix}_mask.png", "ground truth")]
        for i, (run, panels) in enumerate(zip(runs, found, strict=True)):
            prediction = panels[0] / f"{prefix}_prediction.png" if panels else None
            if prediction is not None and prediction.is_file():
                row.append(_figure(prediction, run.title, _run_color(i)))
        rows.append(row)
    return rows


def _training_pictures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run that mixes: what its last drawn batch was made of."""
    groups = []
    for i, run in enumerate(runs):
        if (panels := _tiles(run, ("train_0_mixed_image.png",))) is None:
            continue
        rows: list[list[dict[str, Any]]] = []
        while len(rows) < _MAX_TRAIN_ROWS and (panels[0] / f"train_{len(rows)}_mixed_image.png").is_file():
            files = {tile: panels[0] / f"train_{len(rows)}_{tile}.png" for tile in _TRAIN_TILES}
            rows.append([_figure(file, _TRAIN_TILES[tile]) for tile, file in files.items() if file.is_file()])
        step = int(panels[0].name.removeprefix("step_"))
        groups.append({"title": run.title, "color": _run_color(i), "step": step, "rows": rows})
    return groups


def _tiles(run: Run, names: Sequence[str]) -> tuple[Path, str] | None:
    """The last step's folder of pictures that holds one of the files, and which."""
    for folder in sorted((run.folder / "panels").glob("step_*"), reverse=True):
        for name in names:
            if (folder / name).is_file():
                return folder, name
    return None


def _figure(file: Path, caption: str, color: str | None = None) -> dict[str, Any]:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return {
        "src": Markup(f"data:image/png;base64,{data}"),
        "caption": caption,
        "color": color,
        "photo": caption in _PHOTOS,
    }


# curves


def _charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Charts of the mIoU and, where there is one, the confidence weight of all runs; then the losses of each."""
    charts = [{"title": "mIoU in %", "svg": _miou_chart(runs)}]
    weights = [(run.title, _run_color(i), *run.curve("train/lambda")) for i, run in enumerate(runs)]
    if weights := [curve for curve in weights if curve[2]]:
        charts.append({"title": "Confidence weight λ of the pseudo-labels", "svg": _line_chart(weights)})
    names = sorted({name for run in runs for row in run.metrics[:1] for name in row if name.startswith("train/loss")})
    for run in runs:
        losses = [
            (name.removeprefix("train/"), _LOSS_COLORS[i % len(_LOSS_COLORS)], *run.curve(name))
            for i, name in enumerate(names)
        ]
        if losses := [curve for curve in losses if curve[2]]:
            charts.append({"title": f"Losses of {run.title}", "svg": _line_chart(losses)})
    return charts


def _miou_chart(runs: Sequence[Run]) -> Markup:
    figure, axes = _axes()
    for i, run in enumerate(runs):
        points = [(int(row["step"]), _number(row["miou"])) for row in run.evaluations]
        points = [(step, value) for step, value in points if value is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=_run_color(i), marker="o", markersize=4, linewidth=2, label=run.title)
        axes.annotate(
            f"{values[-1]:.1f}", (steps[-1], values[-1]), (7, 0), textcoords="offset points",
            color=_run_color(i), va="center", weight="bold", annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    return _svg(figure, axes, "miou")


def _line_chart(curves: Sequence[tuple[str, str, list[int], list[float]]]) -> Markup:
    """Curves of (label, colour, steps, values): faint as measured, strong as smoothed."""
    figure, axes = _axes()
    for label, color, steps, values in curves:
        smooth = _smooth(values)
        if smooth is not values:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        axes.plot(steps, smooth, color=color, linewidth=1.8, label=label.replace("_", " "))
    axes.set_ylim(bottom=0)
    return _svg(figure, axes, "-".join(curve[0] for curve in curves))


def _smooth(values: list[float]) -> list[float]:
    """Running mean of long curves over a twentieth of their points, centred; short ones stay as they are."""
    if len(values) < 30:
        return values
    half = max(len(values) // 40, 1)
    return [float(np.mean(values[max(i - half, 0) : i + half + 1])) for i in range(len(values))]


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.spines["bottom"].set_alpha(0.4)
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    axes.grid(axis="y", color=_INK, alpha=0.12)
    axes.set_xlabel("step", color=_INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def _svg(figure: Figure, axes: Axes, salt: str) -> Markup:
    """The figure as an SVG element that takes its ink from the page, so that it follows dark mode."""
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="best")
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return Markup(svg.replace(_INK, "currentColor"))
