"""MiniCity's table over seeds: `python benchmarks/minicity_table.py runs/minicity/seed_0 runs/minicity/seed_1 ...`.

Each folder holds one run per row (`source_only`, `dacs`, `oracle`), as `make table` leaves them. Prints mean and
standard deviation of the final IoUs on the target's validation set as a Markdown table.
"""

import statistics
import sys
from pathlib import Path

from lightning_uda.report import load_runs

ROWS = {"source_only": "source-only", "dacs": "DACS", "oracle": "oracle"}


def cell(values) -> str:
    """Mean and standard deviation, in percent."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def main(folders: list[str]) -> None:
    """Prints the table."""
    if not folders:
        sys.exit(__doc__)
    columns = {row: load_runs([Path(folder) / row for folder in folders]) for row in ROWS}
    print(f"| {len(folders)} seeds | " + " | ".join(ROWS.values()) + " |")
    print("|---|" + "---|" * len(ROWS))
    first = columns["source_only"][0]
    labels = {f"iou_{name}": name for name in first.classes} | {
        name: name.replace("miou", "mIoU") for name in first.means
    }
    for column, label in labels.items():
        cells = [cell([run.value(column) or 0.0 for run in runs]) for runs in columns.values()]
        print(f"| {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
