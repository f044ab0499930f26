"""Figures of feature space: similarity of two domains by class, and their pixels by t-SNE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from lightning_uda.files import replace_file
from lightning_uda.label_spaces import LabelSpace

_INK, _FAINT = "#222222", "#777777"
_DPI = 200
_MARKERS = {"source": "o", "target": "^"}

Points = npt.NDArray[np.float32]


def require_scikit_learn() -> None:
    """Checks that t-SNE can be had.

    Raises:
        ValueError: If scikit-learn isn't installed.
    """
    if find_spec("sklearn") is None:
        raise ValueError(
            "t-SNE: found no scikit-learn, which makes it. Install it by "
            '`pip install "lightning_uda[analysis]"`, or add --no_tsne to leave this figure out.'
        )


def embed(rows: Tensor, seed: int, perplexity: float = 30.0) -> Points:
    """Places pixels in the plane by t-SNE, so that neighbours in feature space are neighbours there.

    Args:
        rows: Features (S, D) of more pixels than the perplexity.
        seed: Of its random numbers; several threads round in no fixed order, which may move places.
        perplexity: About how many neighbours count.

    Returns:
        float32 (S, 2).
    """
    from sklearn.manifold import TSNE

    places: Points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
        rows.cpu().float().numpy()
    )
    return places


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG file, whole or not at all."""
    replace_file(path, lambda part: figure.savefig(part, format="png", dpi=_DPI))


def similarity_figure(similarity: Sequence[float], space: LabelSpace, title: str) -> Figure:
    """Bars of the cosine of source and target centres, a class a row.

    Args:
        similarity: Cosine of each class; NaN where a domain lacks it.
        space: The classes.
        title: Heading, of what network it is.
    """
    values, places = np.asarray(similarity), np.arange(space.num_classes)
    present = np.isfinite(values)
    figure = Figure(figsize=(6.3, 1.1 + 0.27 * space.num_classes), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(places, np.where(present, values, 0), color=_colors(space), edgecolor=_INK, linewidth=0.4, height=0.72)
    for place, value in zip(places, values, strict=True):
        text, color = (f"{value:.3f}", _INK) if np.isfinite(value) else ("absent", _FAINT)
        axes.annotate(text, (1.02, place), color=color, fontsize=8, va="center")
    if present.any():
        mean = float(values[present].mean())
        axes.axvline(mean, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"mean {mean:.3f}", (mean, 1), (0, 3), textcoords="offset points", xycoords=("data", "axes fraction"),
            color=_INK, fontsize=8, ha="center",
        )  # fmt: skip
    axes.set_yticks(places, space.classes)
    axes.set_ylim(space.num_classes - 0.4, -0.6)
    lowest = min(0.0, float(np.nan_to_num(values).min()) - 0.02)
    axes.set_xlim(lowest, 1.12)
    axes.set_xticks([tick / 5 for tick in range(-5, 6) if tick / 5 >= lowest])
    axes.set_xlabel("cosine of the class centres of source and target", fontsize=9, color=_INK)
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    axes.spines[:].set_visible(False)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.grid(axis="x", color=_INK, alpha=0.12)
    axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=11, color=_INK)
    return figure


def tsne_figure(points: Mapping[str, tuple[Points, Tensor]], space: LabelSpace, title: str) -> Figure:
    """Pixels of both domains in the plane, in the colours of their classes.

    Args:
        points: Of "source" and "target", places (S, 2) and classes (S,), on the CPU.
        space: The classes.
        title: Heading, of what network it is.
    """
    colors = np.array(_colors(space))
    figure = Figure(figsize=(8.2, 6.2), layout="constrained")
    axes = figure.add_subplot()
    for domain, (places, labels) in points.items():
        axes.scatter(
            places[:, 0],
            places[:, 1],
            s=14,
            c=colors[labels.numpy()],
            marker=_MARKERS[domain],
            alpha=0.85,
            linewidths=0.3 if domain == "target" else 0,
            edgecolors=_INK,
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[])  # the axes of t-SNE mean nothing
    axes.spines[:].set_color("#cccccc")
    shown = sorted({label for _, labels in points.values() for label in labels.tolist()})
    classes = [_mark("s", colors[label], space.classes[label]) for label in shown]
    domains = [_mark(_MARKERS[domain], "#bbbbbb", domain, _INK if domain == "target" else "none") for domain in points]
    gap = _mark("", "none", "")
    figure.legend(
        handles=[*domains, gap, *classes], loc="outside right center", frameon=False, fontsize=9, labelcolor=_INK
    )
    figure.suptitle(title, fontsize=11, color=_INK)
    return figure


def _colors(space: LabelSpace) -> list[tuple[float, float, float]]:
    return [(red / 255, green / 255, blue / 255) for red, green, blue in space.palette]


def _mark(marker: str, color: Any, label: str, edge: str = "none") -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], linestyle="", marker=marker, markersize=7, color=color, markeredgecolor=edge, label=label)
