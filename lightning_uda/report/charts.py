"""The page's curves, as SVG elements."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_uda.metrics import iou_column, mean_column
from lightning_uda.report.runs import Run
from lightning_uda.report.table import LOSS, losses_of

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Colours of Okabe and Ito, which colour-blind eyes tell apart; curves differ by their dashes too."""

_DASHES = ((), (6, 2), (2, 2), (8, 2, 2, 2))  # lengths of strokes and gaps
_SPARK = (120, 40)  # width and height
_INK = "#010203"

_Curve = tuple[str, str, list[int], list[float]]
"""Label, colour, steps and values of a curve."""


def run_color(index: int) -> str:
    """Colour of a run in all charts and captions."""
    return COLORS[index % len(COLORS)]


def class_curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each class the IoU of all runs over the steps, as polylines; none if no run was evaluated twice.

    Each has a `name`, a `top`, the IoU in percent at its upper edge (the highest, at least 1), and `lines` with
    `points` in a box of 120 x 40, `color`, `dash` and the `last` value.
    """
    if all(len(run.evaluations) < 2 for run in runs):
        return []
    end = max(run.last_evaluation for run in runs) or 1
    curves = []
    for name in runs[0].classes:
        scores = [run.scores(iou_column(name)) for run in runs]
        top = max([1.0, *(value for _, values in scores for value in values)])
        lines = [
            {
                "points": " ".join(
                    f"{_SPARK[0] * step / end:.1f},{_SPARK[1] * (1 - value / top):.1f}"
                    for step, value in zip(steps, values, strict=True)
                ),
                "color": run_color(i),
                "dash": " ".join(map(str, _DASHES[i % len(_DASHES)])),
                "last": f"{values[-1]:.1f}",
            }
            for i, (steps, values) in enumerate(scores)
            if steps
        ]
        curves.append({"name": name, "top": top, "lines": lines})
    return curves


def charts_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Charts of the mIoU and, where there is one, lambda of all runs; then the losses of each."""
    charts = [{"title": "mIoU in %", "svg": _miou_chart(runs)}]
    weights = [(run.title, run_color(i), *run.curve("train/lambda")) for i, run in enumerate(runs)]
    charts += _chart("lambda, the weight of target pixels", weights)
    losses = losses_of(runs)
    colors = {name: run_color(i) for i, name in enumerate(losses)} | {LOSS: _INK}
    for run in runs:
        charts += _chart(
            f"Losses of {run.title}", [(label, colors[name], *run.curve(name)) for name, label in losses.items()]
        )
    return charts


def _miou_chart(runs: Sequence[Run]) -> Markup:
    figure, axes = _axes()
    for i, run in enumerate(runs):
        steps, values = run.scores(mean_column())
        if not steps:
            continue
        axes.plot(
            steps, values, color=run_color(i), dashes=_DASHES[i % len(_DASHES)], marker="o", markersize=4, linewidth=2,
            label=run.title,
        )  # fmt: skip
        axes.annotate(
            f"{values[-1]:.1f}", (steps[-1], values[-1]), (7, 0), textcoords="offset points",
            color=run_color(i), va="center", weight="bold", annotation_clip=False,
        )  # fmt: skip
    return _svg(figure, axes, "miou")


def _chart(title: str, curves: Sequence[_Curve]) -> list[dict[str, Any]]:
    """A chart of the curves that have points; none if none has."""
    found = [curve for curve in curves if curve[2]]
    return [{"title": title, "svg": _line_chart(found)}] if found else []


def _line_chart(curves: Sequence[_Curve]) -> Markup:
    """Curves, faint as measured, strong as smoothed."""
    figure, axes = _axes()
    for label, color, steps, values in curves:
        smooth = _smooth(values)
        if smooth is not values:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        line = "--" if color == _INK else "-"  # the total, which hides a loss that is the only one
        axes.plot(steps, smooth, line, color=color, linewidth=1.8, label=label)
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
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if axes.dataLim.ymin < 0 else 0)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="best")
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return Markup(svg.replace(_INK, "currentColor"))
