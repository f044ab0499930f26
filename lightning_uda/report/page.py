"""The self-contained HTML page of several runs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lightning_uda.files import write_beside_older
from lightning_uda.metrics import CONFUSIONS, MIOU_NOTE, mean_column
from lightning_uda.report.charts import charts_of, class_curves, run_color
from lightning_uda.report.notes import notes_of
from lightning_uda.report.run_files import read_extremes
from lightning_uda.report.runs import Run, class_name, init_args
from lightning_uda.report.table import best_miou, gain_of, loss_rows, rows_of
from lightning_uda.tables import percent

_STREAMS = ("source", "target")
_MAX_TRAIN_ROWS = 2
_WEIGHTS = ("weights", "pretrained", "init_from", "load_from")


def write_page(runs: Sequence[Run], output: Path, compared: Sequence[Run]) -> Path:
    """Writes the page and gives its path; a page that is there already is kept as `<stem>.<n>.html`."""
    path = page_path(output)
    write_beside_older(path, _render(runs, compared))
    return path


def page_path(output: Path) -> Path:
    """The page itself, or `report.html` in a folder."""
    return Path(output) / "report.html" if Path(output).is_dir() else Path(output)


def _render(runs: Sequence[Run], compared: Sequence[Run]) -> str:
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
        rows=list(rows_of(runs, compared)),
        gain_colors=[run_color(i) for i, run in enumerate(runs) if run in compared] if len(runs) > 1 else [],
        compared=[run.title for run in compared],
        miou_note=MIOU_NOTE,
        confusions=[_confusion(run, run_color(i)) for i, run in enumerate(runs)],
        curves=class_curves(runs),
        losses=list(loss_rows(runs)),
        charts=charts_of(runs),
        evaluation_rows=_evaluation_pictures(runs),
        extremes=[found for i, run in enumerate(runs) if (found := _extremes(run, run_color(i)))],
        training=_training_pictures(runs),
        record=_record(runs),
        palette=list(zip(space.classes, space.palette, strict=True)) if len(set(space.palette)) > 1 else [],
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


def _confusion(run: Run, color: str) -> dict[str, Any]:
    """The matrix of the last evaluation: what percentage of the pixels of each class was predicted as which."""
    truth = run.confusion.sum(dim=1, keepdim=True)
    shares = (100 * run.confusion.double() / truth).tolist()
    rows = [
        {"name": name, "cells": [None if value != value else round(value) for value in row]}
        for name, row in zip(run.classes, shares, strict=True)
    ]
    return {"title": run.title, "color": color, "step": run.last_evaluation, "rows": rows}


def _record(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What was run, a row for each fact with a cell for each run; facts that no run tells are left out."""
    columns = [_recorded(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    cells = {name: [column.get(name, "") for column in columns] for name in names}
    return [(name, row) for name, row in cells.items() if any(row)]


def _recorded(run: Run) -> dict[str, str]:
    data, model = init_args(run.config.get("data")), init_args(run.config.get("model"))
    sizes = run.record.get("data") or {}
    facts = {}
    for name in ("source", "target", "labelled_target", "val", "test"):
        images = f", {sizes[name]} images" if name in sizes else ""
        facts[name] = f"{_describe(data[name])}{images}" if data.get(name) else ""
    seed = run.config.get("seed_everything")
    return {
        **facts,
        "network": _describe(model.get("network")),
        "weights": ", ".join(dict.fromkeys(_weights(model))) or "random" * bool(model.get("network")),
        "seed": "" if seed is None else str(seed),
        "goes on from": ", ".join("/".join(folder.parts[-3:]) for folder in run.earlier),
        "git": str(run.record.get("git") or ""),
        **{name: str(version) for name, version in (run.record.get("versions") or {}).items()},
    }


def _weights(node: Any) -> list[str]:
    """What a config names as weights, of any part of the method."""
    if isinstance(node, list):
        return [found for part in node for found in _weights(part)]
    if not isinstance(node, dict):
        return []
    named = [f"{key}: {node[key]}" for key in _WEIGHTS if isinstance(node.get(key), str | bool) and node[key]]
    return [*named, *(found for part in node.values() for found in _weights(part))]


def _extremes(run: Run, color: str) -> dict[str, Any] | None:
    """The worst and the best images of the last evaluation that was drawn, with their scores."""
    found = _tiles(run, (f"{run.stage}_extremes.csv",))
    if found is None:
        return None
    folder, rows = found[0], []
    kinds = {"image": "image", "mask": "ground truth", "prediction": "prediction", "errors": "where it is wrong"}
    for row in read_extremes(folder / found[1]):
        files = {kind: folder / f"{run.stage}_{row['picture']}_{kind}.png" for kind in kinds}
        tiles = [_figure(file, kinds[kind]) for kind, file in files.items() if file.is_file()]
        caption = f"{row['picture'].split('_')[0]}: {row['image']}, mIoU {percent(float(row['miou']))}"
        rows.append({"caption": caption, "tiles": tiles})
    return {"title": run.title, "color": color, "rows": rows}


def _evaluation_pictures(runs: Sequence[Run]) -> list[list[dict[str, Any]]]:
    """For each evaluated image: the image, its label, and every run's prediction."""
    found = [_tiles(run, ("val_0_image.png", "test_0_image.png")) for run in runs]
    rows: list[list[dict[str, Any]]] = []
    if found[0] is None:
        return rows
    folder, stage = found[0][0], found[0][1].split("_")[0]
    while (image := folder / f"{stage}_{len(rows)}_image.png").is_file():
        prefix = f"{stage}_{len(rows)}"
        drawn = ((image, "image"), (folder / f"{prefix}_mask.png", "ground truth"))
        row = [_figure(file, caption) for file, caption in drawn if file.is_file()]
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
        folder = next((folder for folder in _panels(run) if list(folder.glob("train_0_*_image.png"))), None)
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
    for folder in _panels(run):
        for name in names:
            if (folder / name).is_file():
                return folder, name
    return None


def _panels(run: Run) -> list[Path]:
    """Folders of pictures, `panels/step_<step>`, the last step first."""
    folders = (run.folder / "panels").glob("step_*")
    return sorted((path for path in folders if path.name.removeprefix("step_").isdecimal()), reverse=True)


def _figure(file: Path, caption: str, color: str | None = None) -> dict[str, Any]:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return {
        "src": Markup(f"data:image/png;base64,{data}"),
        "caption": caption,
        "color": color,
        "photo": caption.endswith("image"),
    }
