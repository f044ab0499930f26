"""Writes the tables of docs/benchmarks.md, and scores within sentences, from docs/figures/*.csv.

`python docs/make_benchmarks.py`. A block between `<!-- table GRID -->` and `<!-- end -->` is replaced by the tables
and orders of a grid; `pseudo_labels` is what `benchmarks/pseudo_labels.py` counted. Between `<!-- score GRID ROW -->`
and `<!-- end -->`, here and on the pages of methods, stands the mIoU of a row; after `<!-- score GRID ROW - OTHER -->`
its paired difference to another row; a further word is another metric. A sign and a deviation are written where the
text before has them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any

from lightning_uda.commands.figures import FiguresFile
from lightning_uda.commands.grid_file import Grid, read_grid
from lightning_uda.metrics import score_label
from lightning_uda.report.grid_table import OrderStep, Score, Spread, order_steps, score_rows
from lightning_uda.tables import read_rows

Rows = Mapping[str, Mapping[tuple[Any, ...], Mapping[str, float]]]
"""Figures by row and by the values of a run's axes."""

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
METHOD_PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
VERDICTS = {"yes": "holds", "no": "**reversed**", "not resolved": "not resolved"}
"""How pages say whether a step of an order holds."""
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SCORE = re.compile(r"(<!-- score (\w+) (\w+)(?: - (\w+))?(?: (\w+))? -->)([^<]*)(<!-- end -->)")


def main() -> None:
    """Rewrites the pages."""
    for page in (PAGE, *METHOD_PAGES):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """A page with the tables and scores of the committed figures."""
    return with_blocks(text, lambda name: pseudo_labels() if name == "pseudo_labels" else tables(name))


def with_blocks(text: str, block: Callable[[str], str]) -> str:
    """A page whose blocks are replaced by what is made of the names of their grids, and its scores."""
    return SCORE.sub(score, BLOCK.sub(lambda match: match[1] + block(match[2]) + match[3], text))


def score(match: re.Match[str]) -> str:
    """A score within a sentence, in the form of the one before."""
    mark, name, row, other, metric, before, end = match.groups()
    rows = grid_and_figures(name)[1]
    compared = {each: rows[each] for each in (row, other) if each}
    found = score_rows(compared, [metric or "miou"], other or row)[0]
    value = found.difference or found.value
    if "±" not in before:
        value = Spread(value.count, value.mean, None)
    return mark + spread(value, "+" if before[:1] in {"+", "-"} else "") + end


def figures_file(name: str) -> Path:
    """The file of a grid's committed figures."""
    return ROOT / f"docs/figures/{name}.csv"


@cache
def grid_and_figures(name: str) -> tuple[Grid, Rows]:
    """A grid, and the committed figures of its rows, those without runs too."""
    grid = read_grid(ROOT / f"configs/grids/{name}.yaml")
    file = FiguresFile(figures_file(name), tuple(grid.points[0].values))
    rows = {
        row: {tuple(p.values.items()): found for p in grid.rows[row].points if (found := file.find(row, p.values))}
        for row in grid.rows
    }
    return grid, rows


def tables(name: str) -> str:
    """Markdown tables of a grid: the scores of each of its tables, then its orders. Rows without runs are left out."""
    grid, rows = grid_and_figures(name)
    lines = []
    for title, names in grid.tables.items():
        there = {row: rows[row] for row in names if rows[row]}
        if len(there) > 1:
            control = next(iter(there))
            shown = ["miou", *(m for m in grid.metrics if m.startswith("miou_") and everywhere(m, there)), "minutes"]
            against = f"against {grid.rows[control].title}"
            headings = [f"{score_label(metric)} | {against}" for metric in shown[:-1]]
            lines += [f"| {title} | {' | '.join(headings)} | runs | minutes |", "|---" * (2 * len(headings) + 3) + "|"]
            scores = {(score.row, score.metric): score for score in score_rows(there, shown, control)}
            lines += [line(grid.rows[row].title, [scores[row, metric] for metric in shown]) for row in there]
            lines.append("")
    if steps := order_steps(rows, grid.orders, "miou"):
        lines += ["| order | from | to | paired difference | pairs | |", "|---|---|---|---|---|---|"]
        lines += [order_line(step, {row: each.title for row, each in grid.rows.items()}) for step in steps]
    return "\n" + "\n".join(lines) + "\n\n"


def pseudo_labels() -> str:
    """Markdown tables of the labels of self-training at dusk: by row and round, and by class in the last round."""
    titles, found = {row: each.title for row, each in grid_and_figures("dusk")[0].rows.items()}, defaultdict(list)
    for line in read_rows(figures_file("pseudo_labels")):
        found[line["run"].split("/")[-2], line["class"], line["round"]].append(line)
    rows, classes, rounds = (list(dict.fromkeys(key[i] for key in found)) for i in range(3))

    def cell(row: str, name: str, number: str, column: str, digits: int = 0) -> str:
        known = [float(line[column]) for line in found[row, name, number] if line[column]]
        return f"{mean(known):.{digits}f}" if known else "-"

    lines = ["| row | labelled, % | right, % | mIoU after the round |", "|---|---|---|---|"]
    for row in rows:
        shown = (("labelled", 0), ("right", 0), ("miou_after", 1))
        cells = (", ".join(cell(row, classes[-1], number, *column) for number in rounds) for column in shown)
        lines.append(f"| {titles[row]} | {' | '.join(cells)} |")
    taught = [row for row in rows if cell(row, classes[-1], rounds[-1], "right") != "-"]
    lines += ["", f"| labelled, % / right, % in round {rounds[-1]} | {' | '.join(titles[row] for row in taught)} |"]
    lines.append("|---" * (len(taught) + 1) + "|")
    for name in classes:
        cells = (" / ".join(cell(row, name, rounds[-1], column) for column in ("labelled", "right")) for row in taught)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n\n"


def everywhere(metric: str, rows: Rows) -> bool:
    """Whether all runs of all rows have a score."""
    return all(isfinite(figures.get(metric, nan)) for runs in rows.values() for figures in runs.values())


def line(title: str, scores: Sequence[Score]) -> str:
    """A row of a table; the last of the scores are minutes."""
    *shown, minutes = scores
    took = f"{minutes.value.mean:.1f}" if minutes.value.count else ""
    cells = (f"{spread(each.value)} | {spread(each.difference, '+') if each.difference else ''}" for each in shown)
    return f"| {title} | {' | '.join(cells)} | {shown[0].value.count} | {took} |"


def order_line(step: OrderStep, titles: dict[str, str]) -> str:
    """A step of an order."""
    named = f"| {step.order} | {titles[step.lower]} | {titles[step.higher]} "
    return f"{named}| {spread(step.difference, '+')} | {step.difference.count} | {VERDICTS[step.holds]} |"


def spread(value: Spread, sign: str = "") -> str:
    """Such as "31.2 ± 0.8"."""
    return f"{value.mean:{sign}.1f}" + (f" ± {value.deviation:.1f}" if value.deviation is not None else "")


if __name__ == "__main__":
    main()
