"""Writes docs/results.md from docs/figures/published.csv and our figures: `python docs/make_results.py`.

A line of `published.csv` is a row of a paper's table: what it is, our experiment for it with the options that make it,
those that make its reference preset of it, the metric and the published value. `python docs/make_results.py PAIR FILE`
writes a grid file of all rows of a pair, for `lightning-uda grid FILE`, which is what `make published` calls. Ours is
the mean over seeds of `docs/figures/<pair>.csv`, the figures of that grid.
"""

import csv
import re
import shlex
import statistics
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from lightning_uda.config_files import read_config
from lightning_uda.includes import resolve

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
HEAD = """# Published results, and ours

Every row of the papers' result tables that we know, the experiment that it is here, and what came out. It is written
by `python docs/make_results.py` from `docs/figures/published.csv` and the figures of runs; "not run here" stands until
somebody runs the row: `lightning-uda fit --config PAIR/EXPERIMENT`, with the options given and, where there are some, a
`--name` of its own; or, over seeds and with its figures on this page,
`make published PAIR=gta5_to_cityscapes ROWS="dacs dsp_beta_0.5" SOURCE=folder TARGET=folder WEIGHTS=file`. Rows are
called as the experiment, with names and values of the options behind it, and `_reference` for a reference preset.

Values are mIoU in percent; 16 and 13 classes on SYNTHIA; "best" is the best evaluation on validation, which target
labels choose. DACS's and T2S-DA's are means of three runs, the others of one as far as the papers say; ours are means,
with the number of runs. The programs of DACS and DSP score labels that are shrunk to 512 x 1024; our runs log both that
(`val/miou_at_512x1024`) and the score at native size.

Experiments follow the papers where they and their programs disagree by an oversight. The **reference preset** of a row
does what the published program does, as far as it is known: its options stand below the table, to be added to those of
the row. CBST's rows start from a source network: run the row "source" first (`make published` does).
"""
SCORES = {"miou": "", "miou_16": "16 classes", "miou_13": "13 classes"}
BEST = "best_"

Published = dict[str, str]


def published() -> list[Published]:
    """All rows of the papers."""
    with (FIGURES / "published.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def name_of(row: Published, reference: bool = False) -> str:
    """What the grid calls a row: its experiment, then names and values of its options."""
    words = [word.rpartition(".")[2] if word.startswith("--") else word for word in shlex.split(row["options"])]
    name = re.sub(r"[^\w.]+", "_", " ".join([row["config"], *words])).strip("_")
    return f"{name}_reference" if reference else name


def ours(row: Published) -> str:
    """Means over seeds of our runs of a row, as text: by its metric, its last or best, and its reference preset's."""
    path = FIGURES / f"{row['pair']}.csv"
    if not path.is_file():
        return "not run here"
    with path.open(newline="") as file:
        runs = list(csv.DictReader(file))
    last = row["metric"].removeprefix(BEST)
    said = {last: "last", f"{BEST}{last}": "best"} | {row["metric"]: ""}
    found = []
    for reference in (False, True):
        named = [run for run in runs if run["row"] == name_of(row, reference)]
        for metric in sorted(said, key=lambda metric: said[metric]):
            values = [float(run[metric]) for run in named if run.get(metric)]
            if values:
                value = f"{statistics.mean(values):.1f} ({len(values)})"
                found.append(" ".join(filter(None, ["reference" if reference else "", said[metric], value])))
    return ", ".join(found) or "not run here"


def grid_of(pair: str) -> dict[str, Any]:
    """A grid file's content: the published rows of a pair with their reference presets, and what they start from."""
    rows: dict[str, dict[str, Any]] = {}
    tables: dict[str, list[str]] = {}
    metrics: dict[str, None] = {}
    if pair == "cityscapes_to_nthu":
        raise SystemExit(f"error: the folds of {pair} are pooled by `make nthu`, with the ROW that the page names.")
    of_pair = [row for row in published() if row["pair"] == pair]
    if not of_pair:
        raise SystemExit(
            f"error: found no rows of {pair!r}; expected one of {sorted({row['pair'] for row in published()})}."
        )
    for row in of_pair:
        path = ROOT / "configs" / "experiment" / pair / f"{row['config']}.yaml"
        start = resolve(read_config(path), path.parent, yaml.safe_load)["model"]["init_args"].get("init_from")
        options = shlex.split(row["options"])
        if start:
            source = Path(start).name
            rows.setdefault(source, {"config": f"{pair}/{source}"})
            options.append(f"--model.init_from={{run:{source}}}")
        rows.setdefault(name_of(row), {"config": f"{pair}/{row['config']}", "options": options})
        in_table = tables.setdefault(f"{row['paper']}: {row['table']}", [])
        names = [name_of(row)]
        if row["reference"]:
            names.append(name_of(row, reference=True))
            rows.setdefault(
                names[1], {"config": f"{pair}/{row['config']}", "options": options + shlex.split(row["reference"])}
            )
        in_table += [name for name in names if name not in in_table]
        last = row["metric"].removeprefix(BEST)
        metrics |= dict.fromkeys([last, f"{BEST}{last}"])
    return {
        **{"name": f"published_{pair}", "seeds": [0, 1, 2], "run": f"published_{pair}/seed_{{seed}}/{{row}}"},
        **{"rows": rows, "tables": tables, "metrics": [*metrics, "minutes"]},
    }


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for paper, of_paper in groupby(published(), lambda row: row["paper"]):
        lines.append(f"## {paper}\n")
        for (table, pair), of_table in groupby(of_paper, lambda row: (row["table"], row["pair"])):
            lines += [f"**{table}**, `{pair}`\n", "| row | experiment | published | ours | |", "|---|---|---|---|---|"]
            references: dict[str, list[str]] = {}
            for row in of_table:
                options = f" `{row['options']}`" if row["options"] else ""
                if row["reference"]:
                    references.setdefault(row["reference"], []).append(row["row"])
                metric = row["metric"].removeprefix(BEST)
                said = [SCORES[metric], "best" if metric != row["metric"] else "", row["remark"]]
                cells = (
                    row["row"],
                    f"`{row['config']}`{options}",
                    row["published"],
                    ours(row),
                    "; ".join(filter(None, said)),
                )
                lines.append(f"| {' | '.join(cells)} |")
            lines.append("")
            for reference, named in references.items():
                which = "every row" if len(references) == 1 else ", ".join(dict.fromkeys(named))
                lines.append(f"Reference preset of {which}: `{reference}`\n")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        pair, grid_file = sys.argv[1:]
        Path(grid_file).parent.mkdir(parents=True, exist_ok=True)
        Path(grid_file).write_text(yaml.safe_dump(grid_of(pair), sort_keys=False), encoding="utf-8")
    else:
        (ROOT / "docs" / "results.md").write_text(page(), encoding="utf-8")
