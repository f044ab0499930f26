"""Writes docs/results.md from docs/figures/published.csv and our figures: `python docs/make_results.py`.

A line of `published.csv` is a row of a paper's table: what it is, our experiment for it with the options that make it,
those that make its reference preset of it, the metric and the published value. Ours is the mean over seeds of
`docs/figures/<pair>.csv`, a file of `lightning-uda grid --figures`, where the row is called as the experiment and was
run without options.
"""

import csv
import statistics
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
HEAD = """# Published results, and ours

Every row of the papers' result tables that we know, the experiment that it is here, and what came out. It is written
by `python docs/make_results.py` from `docs/figures/published.csv` and the figures of runs; "not run here" stands until
somebody runs the row: `lightning-uda fit --config PAIR/EXPERIMENT`, with the options given and, where there are some, a
`--name` of its own. Values are mIoU in percent; 16 and 13 classes on SYNTHIA; "best" is the best evaluation on
validation, which target labels choose. DACS's and T2S-DA's are means of three runs, the others of one as far as the
papers say. The programs of DACS and DSP score labels that are shrunk to 512 x 1024; our runs log both that
(`val/miou_at_512x1024`) and the score at native size.

Experiments follow the papers where they and their programs disagree by an oversight. The **reference preset** of a row
does what the published program does, as far as it is known: its options stand below the table, to be added to the row's.
CBST's rows of FCN8s and Wide ResNet-38 start from a source network: run the row "source" first.
"""
SCORES = {"miou": "", "miou_16": "16 classes", "miou_13": "13 classes"}


def ours(row: dict[str, str]) -> str:
    """Mean over seeds of our runs of a row, as text."""
    path = FIGURES / f"{row['pair']}.csv"
    if row["options"] or not path.is_file():
        return "not run here"
    with path.open(newline="") as file:
        runs = [run.get(row["metric"]) for run in csv.DictReader(file) if run["row"] == row["config"]]
    values = [float(value) for value in runs if value]
    return f"{statistics.mean(values):.1f} ({len(values)})" if values else "not run here"


def page() -> str:
    """The whole page."""
    with (FIGURES / "published.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [HEAD]
    for paper, of_paper in groupby(rows, lambda row: row["paper"]):
        lines.append(f"## {paper}\n")
        for (table, pair), of_table in groupby(of_paper, lambda row: (row["table"], row["pair"])):
            lines += [f"**{table}**, `{pair}`\n", "| row | experiment | published | ours | |", "|---|---|---|---|---|"]
            references: dict[str, list[str]] = {}
            for row in of_table:
                experiment = f"`{row['config']}`"
                options = f" `{row['options']}`" if row["options"] else ""
                if row["reference"]:
                    references.setdefault(row["reference"], []).append(row["row"])
                metric = row["metric"].removeprefix("best_")
                said = [SCORES[metric], "best" if metric != row["metric"] else "", row["remark"]]
                remark = "; ".join(filter(None, said))
                cells = (row["row"], experiment + options, row["published"], ours(row), remark)
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
            for reference, named in references.items():
                which = "every row" if len(references) == 1 else ", ".join(dict.fromkeys(named))
                lines.append(f"Reference preset of {which}: `{reference}`\n")
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "results.md").write_text(page(), encoding="utf-8")
