"""Writes the tables of docs/benchmarks.md from docs/figures/*.csv: `python docs/make_benchmarks.py`.

A block between `<!-- table GRID -->` and `<!-- end -->` is replaced by the tables and orders of a grid.
"""

import re
from pathlib import Path

from lightning_uda.commands.figures import FiguresFile
from lightning_uda.commands.grid_file import read_grid
from lightning_uda.report.grid_table import OrderStep, Score, Spread, order_steps, score_rows

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Rewrites the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The page with the tables of the committed figures."""
    return BLOCK.sub(lambda match: match[1] + tables(match[2]) + match[3], text)


def tables(name: str) -> str:
    """Markdown tables of a grid: the scores of each of its tables, then its orders. Rows without runs are left out."""
    grid = read_grid(ROOT / f"configs/grids/{name}.yaml")
    file = FiguresFile(ROOT / f"docs/figures/{name}.csv", tuple(grid.points[0].values))
    rows = {
        row: {tuple(p.values.items()): found for p in grid.rows[row].points if (found := file.find(row, p.values))}
        for row in grid.rows
    }
    lines = []
    for title, names in grid.tables.items():
        there = {row: rows[row] for row in names if rows[row]}
        if len(there) > 1:
            control = next(iter(there))
            lines += [
                f"| {title} | mIoU | against {grid.rows[control].title} | runs | minutes |",
                "|---|---|---|---|---|",
            ]
            scores = {(score.row, score.metric): score for score in score_rows(there, ["miou", "minutes"], control)}
            lines += [line(grid.rows[row].title, scores[row, "miou"], scores[row, "minutes"].value) for row in there]
            lines.append("")
    if steps := order_steps(rows, grid.orders, "miou"):
        lines += ["| order | from | to | paired difference | pairs | holds |", "|---|---|---|---|---|---|"]
        lines += [order_line(step, {row: each.title for row, each in grid.rows.items()}) for step in steps]
    return "\n" + "\n".join(lines) + "\n\n"


def line(title: str, score: Score, minutes: Spread) -> str:
    """A row of a table."""
    difference = spread(score.difference, "+") if score.difference else ""
    return f"| {title} | {spread(score.value)} | {difference} | {score.value.count} | {minutes.mean or 0:.1f} |"


def order_line(step: OrderStep, titles: dict[str, str]) -> str:
    """A step of an order."""
    named = f"| {step.order} | {titles[step.lower]} | {titles[step.higher]} "
    return f"{named}| {spread(step.difference, '+')} | {step.difference.count} | {step.holds} |"


def spread(value: Spread, sign: str = "") -> str:
    """Such as "31.2 ± 0.8"."""
    return f"{value.mean:{sign}.1f}" + (f" ± {value.deviation:.1f}" if value.deviation is not None else "")


if __name__ == "__main__":
    main()
