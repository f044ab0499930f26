"""MiniCity's tables over seeds: `python benchmarks/minicity_table.py runs/minicity/seed_0 runs/minicity/seed_1 ...`.

Each folder holds one run per row (`source_only`, `dacs`, ...), as `make table`, `ablation` and `rounds` leave them.
Prints mean and standard deviation of the final IoUs on the target's validation set as a Markdown table; below it, the
number of classes whose IoU stays below 1 %, the gain over the first row, and, for DSP, the long-tail classes pasted per
image.
"""

import argparse
import statistics
from pathlib import Path

from lightning_uda.metrics import mean_label
from lightning_uda.report import load_runs

TITLES = {
    "source_only": "source-only",
    "ada_bn": "AdaBN",
    "mean_teacher": "mean teacher",
    "naive_class_mix": "naive ClassMix",
    "distribution_alignment": "distribution alignment",
    "dacs": "DACS",
    "dacs_box": "DACS, box",
    "dsp_hard_paste": "dual hard paste",
    "dsp_soft_paste": "dual soft-paste",
    "dsp": "DSP",
    "dsp_k0": "DSP, k = 0",
    "st": "ST",
    "cbst": "CBST",
    "cbst_sp": "CBST-SP",
    "oracle": "oracle",
}


def cell(values) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def row(label: str, cells) -> None:
    """Prints a row of the table."""
    print(f"| {label} | " + " | ".join(cells) + " |")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="+", type=Path, help="Folders of one seed each.")
    parser.add_argument("--rows", nargs="+", choices=TITLES, default=["source_only", "dacs", "oracle"])
    chosen = parser.parse_args()
    columns = [load_runs([folder / name for folder in chosen.seeds]) for name in chosen.rows]
    first = columns[0][0]
    classes = {f"iou_{name}": name for name in first.classes}
    row(f"{len(chosen.seeds)} seeds", [TITLES[name] for name in chosen.rows])
    row("---", ["---"] * len(columns))
    for column, label in (classes | {name: mean_label(name) for name in first.means}).items():
        row(label, [cell([run.value(column) or 0.0 for run in runs]) for runs in columns])
    lost = [[sum((run.value(name) or 0.0) < 1 for name in classes) for run in runs] for runs in columns]
    row("classes below 1 %", [cell(counts) for counts in lost])
    base = [run.value("miou") or 0.0 for run in columns[0]]
    gains = [[(run.value("miou") or 0.0) - b for run, b in zip(runs, base, strict=True)] for runs in columns]
    row("gain, mIoU", [cell(values) for values in gains])
    pasted = [[value for run in runs for value in run.curve("train/tail_classes")[1]] for runs in columns]
    row("long-tail classes pasted per image", [f"{statistics.mean(values):.2f}" if values else "" for values in pasted])


if __name__ == "__main__":
    main()
