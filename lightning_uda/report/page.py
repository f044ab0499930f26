"""The self-contained HTML page of several runs."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lightning_uda.files import write_beside_older
from lightning_uda.metrics import CONFUSIONS, mean_column
from lightning_uda.report.charts import charts_of, run_color
from lightning_uda.report.notes import notes_of
from lightning_uda.report.runs import Run, class_name, init_args
from lightning_uda.report.table import best_miou, gain_of, loss_rows, rows_of
from lightning_uda.tables import percent

_STREAMS = ("source", "target")
_MAX_TRAIN_ROWS = 2
_PACKAGES = ("lightning-uda", "torch", "torchvision", "lightning", "torchmetrics", "timm", "numpy")


def write_page(runs: Sequence[Run], output: Path) -> Path:
    """Writes the page and gives its path; a page that is there already is kept as `<stem>.<n>.html`."""
    output = Path(output)
    if output.is_dir():
        output = output / "report.html"
    html = _render(runs)
    write_beside_older(output, html)
    return output


def _render(runs: Sequence[Run]) -> str:
    template = resources.files("lightning_uda.report").joinpath("page.html").read_text(encoding="utf-8")
    space = runs[0].label_space
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(
        heading=" vs. ".join(run.title for run in runs) if len(runs) < 4 else f"{len(runs)} runs compared",
        stage="validation" if runs[0].stage == "val" else "test",
        cards=[_card(run, runs[0], run_color(i)) for i, run in enumerate(runs)],
        notes=notes_of(runs),
        rows=list(rows_of(runs)),
        losses=list(loss_rows(runs)),
        charts=charts_of(runs),
        evaluation_rows=_evaluation_pictures(runs),
        training=_training_pictures(runs),
        palette=list(zip(space.classes, space.palette, strict=True)) if len(set(space.palette)) > 1 else [],
        versions=_versions(),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
    )


def _card(run: Run, first: Run, color: str) -> dict[str, Any]:
    """What the page says about one run."""
    miou = run.value(mean_column())
    gain, trend = gain_of(first.value(mean_column()), miou)
    return {
        "title": run.title,
        "color": color,
        "miou": percent(miou),
        "gain": None if run is first else gain,
        "trend": trend,
        "first": first.title,
        "step": run.last_evaluation,
        "unfinished": None if run.finished else f"not finished: step {run.last_step} of {run.max_steps}",
        "facts": {name: value for name, value in _facts(run).items() if value},
    }


def _facts(run: Run) -> dict[str, str]:
    """What the run was; empty texts where its config doesn't tell."""
    data, model = init_args(run.config.get("data")), init_args(run.config.get("model"))
    seed = run.config.get("seed_everything")
    through = run.finished and not run.stopped_early
    return {
        "method": class_name(run.config.get("model")),
        "data": " → ".join(_describe(data[key]) for key in ("source", "target") if data.get(key)),
        "network": _describe(model.get("network")),
        "steps": f"{run.max_steps or run.last_step}" if through else f"{run.last_step} of {run.max_steps}",
        "best mIoU": best_miou(run),
        "seed": "" if seed is None else str(seed),
        "time": _duration(run),
        "folder": "/".join(run.folder.parts[-3:]),
    }


def _describe(node: Any) -> str:
    """Class of a configured part, and the argument that tells it from others of its class."""
    args = init_args(node)
    details = [str(args[key]) for key in ("style", "backbone") if args.get(key)]
    return " ".join([class_name(node), *(f"({detail})" for detail in details)])


def _duration(run: Run) -> str:
    """When the run began and how long it took, as its files' times tell."""
    written = [*(run.folder / CONFUSIONS).iterdir(), *run.folder.glob("metrics.csv")]
    end = datetime.fromtimestamp(max(file.stat().st_mtime for file in written))
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
                row.append(_figure(prediction, run.title, run_color(i)))
        rows.append(row)
    return rows


def _training_pictures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run whose student saw more than its streams: what its last drawn batch was made of."""
    groups = []
    for i, run in enumerate(runs):
        folders = sorted((run.folder / "panels").glob("step_*"), reverse=True)
        folder = next((folder for folder in folders if list(folder.glob("train_0_*_image.png"))), None)
        if folder is None:
            continue
        rows = [_training_row(folder, f"train_{number}_") for number in range(_MAX_TRAIN_ROWS)]
        step = int(folder.name.removeprefix("step_"))
        groups.append({"title": run.title, "color": run_color(i), "step": step, "rows": [row for row in rows if row]})
    return groups


def _training_row(folder: Path, prefix: str) -> list[dict[str, Any]]:
    """The streams' images of a sample, then its views: image, label, weights."""
    streams = [folder / f"{prefix}{name}.png" for name in _STREAMS]
    found = folder.glob(f"{prefix}*_image.png")
    views = sorted(file.name.removeprefix(prefix).removesuffix("_image.png") for file in found)
    kinds = ("image", "mask", "weights")
    files = [*streams, *(folder / f"{prefix}{view}_{kind}.png" for view in views for kind in kinds)]
    captions = [f"{name} image" for name in _STREAMS]
    captions += [f"{view} {kind}".replace("mask", "label").replace("_", " ") for view in views for kind in kinds]
    return [_figure(file, caption) for file, caption in zip(files, captions, strict=True) if file.is_file()]


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
        "photo": caption.endswith("image"),
    }
