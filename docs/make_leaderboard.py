"""Writes the tables of docs/leaderboard.md and docs/images/leaderboard.png: `python docs/make_leaderboard.py`.

Everything comes from docs/figures/*.csv, which `make leaderboard` fills. A block between `<!-- table GRID -->` and
`<!-- end -->` is replaced by the ranking, the orders and the IoU by class of a grid.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from make_benchmarks import ROOT, VERDICTS, Rows, figures_file, grid_and_figures, spread, with_blocks
from matplotlib.lines import Line2D

from lightning_uda.commands.grid_file import Grid
from lightning_uda.report.grid_table import Score, Spread, order_steps, score_rows
from lightning_uda.tables import read_rows

PAGE = ROOT / "docs" / "leaderboard.md"
PICTURE = ROOT / "docs" / "images" / "leaderboard.png"
BENCHMARKS = {
    "minicity": "MiniCity, ResNet-18",
    "minicity_mit": "MiniCity, SegFormer-B0",
    "dusk": "Day to dusk, EfficientNet-Lite0",
    "dusk_scratch": "Day to dusk, from random weights",
}
"""Grids of the page and how their panels are called."""

ORDERS = {
    "source < mean teacher < DACS < DSP": ["source_only", "mean_teacher", "dacs", "dsp"],
    "source < naive mix < DACS": ["source_only", "naive_class_mix", "dacs"],
    "ST < CBST < CBST-SP": ["st", "cbst", "cbst_sp"],
    "control < ST": ["zero_labels", "st"],
    "control < CBST": ["zero_labels", "cbst"],
    "control < CBST-SP": ["zero_labels", "cbst_sp"],
    "ST < CBST < CBST-SP, statistics kept": ["st_kept", "cbst_kept", "cbst_sp_kept"],
    "control < ST, statistics kept": ["zero_labels_kept", "st_kept"],
    "control < CBST, statistics kept": ["zero_labels_kept", "cbst_kept"],
    "control < CBST-SP, statistics kept": ["zero_labels_kept", "cbst_sp_kept"],
    "CMix < + HTCM < + contrast": ["ehtdi_cmix", "ehtdi_htcm", "ehtdi"],
    "DACS < + HTCM": ["dacs_borders", "dacs_htcm"],
    "DAFormer < + pull": ["daformer", "t2sda"],
    "DAFormer < + pull, running statistics": ["daformer", "t2sda_running"],
    "DACS < + pull": ["dacs_borders", "dacs_pull"],
    "hard paste < DSP": ["dsp_hard_paste", "dsp"],
    "DSP < + AdaBN": ["dsp", "dsp_ada_bn"],
    "DSP < + ST": ["dsp", "dsp_st"],
    "control < + ST": ["dsp_zero_labels", "dsp_st"],
}
"""Rows of the orders that the papers claim, the lowest first; a grid that lacks one of the rows is not asked."""

CONTROL = "source_only"
BOUNDS = ("oracle_both", "oracle")
"""Rows that are taught labels of all target images, the first beside those of the source."""
WITHIN, BEYOND = "miou_within_3px_of_borders", "miou_beyond_3px_of_borders"
SEEDS_NEEDED = 3
LOOKS = {"fp32": ("#0072B2", "o"), "bf16": ("#D55E00", "D")}
"""Colour (of Okabe and Ito, which the colour-blind can tell apart) and mark of each precision."""
GREY = "#6b7280"

Runs = Mapping[tuple[Any, ...], Mapping[str, float]]
"""Figures by the values of a run's axes."""


@dataclass(frozen=True)
class Entry:
    """What the command of a row says of it, beside its figures.

    Attributes:
        title: How tables call it.
        precision: "fp32" or "bf16", of its training.
        target_labels: Whether it is taught labels of the target.
        remark: What sets its protocol apart.
    """

    title: str
    precision: str
    target_labels: bool
    remark: str


def main() -> None:
    """Rewrites the page and the picture."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    draw()


def filled(text: str) -> str:
    """The page with the tables of the committed figures."""
    return with_blocks(text, block)


def block(name: str) -> str:
    """What the page says of a grid: ranking, precisions, orders, IoU by class, and where the runs come from."""
    grid, rows = grid_and_figures(name)
    entries = {row: entry_of(grid, row) for row in grid.rows}
    order = ranked(rows)
    parts = [
        ranking(rows, entries, order, machines_of(name)),
        precisions(grid, rows, entries),
        orders(rows, entries),
        classes(rows, entries, order),
        origins(name),
    ]
    return "\n" + "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n\n"


def entry_of(grid: Grid, row: str) -> Entry:
    """What the arguments of a row's first run say."""
    arguments = grid.rows[row].points[0].arguments
    labels = row in BOUNDS or any(word.startswith("--data.labelled_target") for word in arguments)
    remarks = {"target labels": labels, "a trained run, evaluated anew": arguments[0] == "validate"}
    for word in arguments:
        if begun_with := re.fullmatch(r"--model\.init_from=.*\b(\w+)}", word):
            remarks[f"goes on from {grid.rows[begun_with[1]].title}"] = True
    precision = "bf16" if "--trainer.precision=bf16-mixed" in arguments else "fp32"
    return Entry(grid.rows[row].title, precision, labels, "; ".join(text for text, true in remarks.items() if true))


def ranked(rows: Rows) -> list[str]:
    """Rows with runs, the highest mean mIoU first."""
    means = {row: Spread.of(measured(runs, "miou")).mean for row, runs in rows.items() if runs}
    return sorted(means, key=lambda row: -(means[row] or 0))


def is_ranked(row: str, rows: Rows, entries: Mapping[str, Entry]) -> bool:
    """Whether a row is compared with others: no target label taught it, and it has all runs that source-only has."""
    return not entries[row].target_labels and len(rows[row]) >= len(rows.get(CONTROL, ()))


def lack(row: str, rows: Rows) -> str:
    """Which runs a row lacks, in bold; empty if none."""
    runs, all_runs = len(rows[row]), len(rows.get(CONTROL, ()))
    if runs < all_runs:
        return f"**{runs} of {all_runs} runs**"
    seeds = len({dict(run)["seed"] for run in rows[row]})
    return f"**{seeds} seed{'s' * (seeds > 1)} only**" if seeds < SEEDS_NEEDED else ""


def ranking(
    rows: Rows, entries: Mapping[str, Entry], order: Sequence[str], machines: Mapping[str, set[str]]
) -> list[str]:
    """The table of all rows with runs, and what has to be said of the gap."""
    shares, said = gap_shares(rows, entries, order)
    headings = ["", "row", "precision", "mIoU", "against source-only", "share of the gap, %", "within 3 px of borders"]
    headings += ["beyond", "runs", "minutes", "machine", "remark"]
    table = [headings]
    scores = {(each.row, each.metric): each for each in score_rows(rows, ["miou", WITHIN, BEYOND, "minutes"], CONTROL)}
    rank = 0
    for row in order:
        entry, has_rank = entries[row], is_ranked(row, rows, entries)
        rank += has_rank
        value = scores[row, "miou"]
        cells = [str(rank) if has_rank else "", entry.title, entry.precision, spread(value.value)]
        cells += [against(value), share_text(shares.get(row))]
        cells += [spread(part) if (part := scores[row, metric].value).count else "" for metric in (WITHIN, BEYOND)]
        minutes = scores[row, "minutes"].value.mean
        cells += [str(value.value.count), "not recorded" if minutes is None else f"{minutes:.1f}"]
        cells += [", ".join(sorted(machines[row])), "; ".join(filter(None, (entry.remark, lack(row, rows))))]
        table.append(cells)
    told = [column for column in zip(*table, strict=True) if not column[0] or any(column[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*told, strict=True)]
    untrained = [entries[row].title for row in rows if not rows[row]]
    missing = [f"Not trained yet: {'; '.join(untrained)}."] if untrained else []
    return [lines[0], "|---" * len(told) + "|", *lines[1:], "", said, *missing]


def against(score: Score) -> str:
    """The paired difference from the control; empty for the control itself and where no run has a partner."""
    return spread(score.difference, "+") if score.difference and score.difference.count else ""


def bound_of(rows: Rows) -> str | None:
    """The row whose distance from source-only is the gap, if one was trained."""
    return next((row for row in BOUNDS if rows.get(row)), None)


def gap_shares(rows: Rows, entries: Mapping[str, Entry], order: Sequence[str]) -> tuple[dict[str, Spread], str]:
    """Share of the gap from source-only to the oracle that each row closes, in percent, and a sentence on it."""
    source, bound = rows.get(CONTROL, {}), bound_of(rows)
    oracle = rows[bound] if bound else {}
    pairs = [run for run in oracle if run in source]
    if not pairs:
        return {}, "No share of a gap is given, as there is no oracle."
    of_methods = [row for row in order if is_ranked(row, rows, entries)]
    above = {
        row: sum(run in rows[row] and rows[row][run]["miou"] >= oracle[run]["miou"] for run in pairs)
        for row in of_methods
    }
    most = max(above, key=lambda row: above[row])
    if above[most]:
        stand = f"{entries[most].title} stands above the oracle in {above[most]} of {len(pairs)} runs"
        return {}, f"No share of a gap is given: {stand}."
    shares = {}
    for row in order:
        runs = rows[row]
        shares[row] = Spread.of(
            [
                100 * (runs[run]["miou"] - source[run]["miou"]) / (oracle[run]["miou"] - source[run]["miou"])
                for run in pairs
                if run in runs
            ]
        )
    best = max(of_methods, key=lambda row: shares[row].mean or nan)
    over = "" if len(pairs) == len(source) else f", over {len(pairs)} of {len(source)} runs"
    return shares, f"{entries[best].title} closes {shares[best].mean:.0f} % of the gap{over}, by its mean the most."


def share_text(share: Spread | None) -> str:
    """Such as "33 ± 2"."""
    if share is None or share.mean is None:
        return ""
    return f"{share.mean:.0f}" + (f" ± {share.deviation:.0f}" if share.deviation is not None else "")


def precisions(grid: Grid, rows: Rows, entries: Mapping[str, Entry]) -> list[str]:
    """What the precision changes, by the rows that were trained in both; nothing if all rows have one precision."""
    there = [row for row in grid.rows if rows[row]]
    if len({entries[row].precision for row in there}) == 1:
        return [f"All runs are in {entries[there[0]].precision}."]
    said = [
        "Rows of both precisions stand in one ranking; differences between them hold what the precision changes, too. "
        "Where one training was run in both, bf16 less fp32 is:"
    ]
    twins = defaultdict(dict)  # type: defaultdict[tuple[str, ...], dict[str, str]]
    for row in there:
        words = grid.rows[row].points[0].arguments
        training = tuple(word for word in words if not word.startswith(("--trainer.precision", "--model.scoring")))
        twins[training].setdefault(entries[row].precision, row)
    pairs = {f"{entries[pair['fp32']].title}": [pair["fp32"], pair["bf16"]] for pair in twins.values() if len(pair) > 1}
    steps = order_steps(rows, pairs, "miou")
    listed = [f"{step.order} {spread(step.difference, '+')} ({step.difference.count} pairs)" for step in steps]
    return [f"{said[0]} {', '.join(listed) or 'not measured'}."]


def orders(rows: Rows, entries: Mapping[str, Entry]) -> list[str]:
    """The table of the orders that the papers claim, step by step."""
    lines = ["| order | step | precision | paired difference | pairs | |", "|---" * 6 + "|"]
    for name, wanted in ORDERS.items():
        if not set(wanted) <= rows.keys():
            continue
        for pair in pairwise(wanted):
            between = " to ".join(dict.fromkeys(entries[row].precision for row in pair))
            named = f"| {name} | {' → '.join(entries[row].title for row in pair)} | {between} "
            steps = order_steps(rows, {name: pair}, "miou")
            if steps and steps[0].difference.count:
                found = steps[0].difference
                lines.append(f"{named}| {spread(found, '+')} | {found.count} | {VERDICTS[steps[0].holds]} |")
            else:
                lines.append(f"{named}| | 0 | not trained |")
    return lines


def classes(rows: Rows, entries: Mapping[str, Entry], order: Sequence[str]) -> list[str]:
    """The table of IoU by class, means over runs."""
    first = next(iter(rows[order[0]].values()))
    names = [metric for metric in first if metric.startswith("iou_")]
    lines = [f"| IoU, % | {' | '.join(name.removeprefix('iou_') for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for row in order:
        means = [Spread.of(measured(rows[row], name)).mean for name in names]
        cells = ["" if mean is None else f"{mean:.0f}" for mean in means]
        lines.append(f"| {entries[row].title} | {' | '.join(cells)} |")
    return lines


def origins(name: str) -> list[str]:
    """The table of where runs come from."""
    lines = ["| commit | date | machine | torch | runs | minutes in all |", "|---" * 6 + "|"]
    groups = defaultdict(list)  # type: defaultdict[tuple[str, ...], list[float]]
    for run in read_rows(figures_file(name)):
        about = (f"`{run['commit']}`", run["date"], run["machine"], run["torch"])
        groups[about].append(float(run["minutes"] or nan))
    for about, minutes in sorted(groups.items(), key=lambda group: (group[0][1], group[0])):
        timed = [value for value in minutes if isfinite(value)]
        total = f"{sum(timed):.0f}" + (f" (of {len(timed)} runs)" if len(timed) < len(minutes) else "")
        lines.append(f"| {' | '.join(about)} | {len(minutes)} | {total if timed else 'not recorded'} |")
    return lines


def machines_of(name: str) -> dict[str, set[str]]:
    """Short names of the machines that a row's runs come from."""
    machines = defaultdict(set)
    for run in read_rows(figures_file(name)):
        words = run["machine"].removeprefix("NVIDIA ").split()
        machines[run["row"]].add(words[0] if words else "not recorded")
    return machines


def measured(runs: Runs, metric: str) -> list[float]:
    """Values of a metric over the runs that have it."""
    return [value for figures in runs.values() if isfinite(value := figures.get(metric, nan))]


def draw() -> None:
    """Draws the ranking of each benchmark: mean and deviation of mIoU, source-only and oracle as lines."""
    found = {name: grid_and_figures(name) for name in BENCHMARKS}
    orders_of = {name: ranked(rows)[::-1] for name, (_, rows) in found.items()}
    columns = [["minicity"], [name for name in BENCHMARKS if name != "minicity"]]
    tallest = max(sum(len(orders_of[name]) + 4 for name in names) for names in columns)
    figure = plt.figure(figsize=(13, 1.2 + 0.19 * tallest), layout="constrained")
    for part, names in zip(figure.subfigures(1, len(columns)), columns, strict=True):
        heights = [len(orders_of[name]) + 2 for name in names]
        panels = part.subplots(len(names), height_ratios=heights, squeeze=False)[:, 0]
        for name, axes in zip(names, panels, strict=True):
            grid, rows = found[name]
            panel(axes, rows, {row: entry_of(grid, row) for row in grid.rows}, orders_of[name])
            axes.set_title(BENCHMARKS[name], loc="left", fontsize=10)
    marks = [Line2D([], [], color=color, marker=mark, ls="", label=kind) for kind, (color, mark) in LOOKS.items()]
    marks.append(Line2D([], [], color=GREY, marker="o", mfc="white", ls="", label="target labels (open)"))
    marks.append(Line2D([], [], color=GREY, ls="--", lw=0.8, label="source-only, oracle"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9)
    figure.savefig(PICTURE, dpi=90, metadata={"Software": None})


def panel(axes: Any, rows: Rows, entries: Mapping[str, Entry], order: Sequence[str]) -> None:
    """Draws a benchmark's rows from below in the order given."""
    for height, row in enumerate(order):
        value, entry = Spread.of(measured(rows[row], "miou")), entries[row]
        color, mark = LOOKS[entry.precision]
        fill = "white" if entry.target_labels else color
        axes.errorbar(value.mean, height, xerr=value.deviation or 0, fmt=mark, color=color, mfc=fill, ms=4, lw=1)
    for row in (CONTROL, bound_of(rows)):
        if row is not None and rows.get(row):
            axes.axvline(Spread.of(measured(rows[row], "miou")).mean, color=GREY, lw=0.8, ls="--", zorder=0)
    titles = [entries[row].title + " *" * bool(lack(row, rows)) for row in order]
    axes.set_yticks(range(len(order)), titles, fontsize=7)
    axes.set_ylim(-1, len(order))
    axes.set_xlabel("mIoU, %, mean ± standard deviation over runs; * lacks runs", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", lw=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
