"""What classes are taken for: `python benchmarks/confusions.py runs/minicity/seed_*/dsp --classes bicycle car`.

The matrices of the runs' last evaluations are added. Prints for each class how much of it is predicted as what, and how
often it is predicted against how often it occurs; a dash for a class that doesn't occur.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_uda.report import load_runs


def main():
    """Prints one row for each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders, such as those of one row over seeds.")
    parser.add_argument("--classes", nargs="+", required=True, help="Names of the classes to look at.")
    chosen = parser.parse_args()
    runs = load_runs(chosen.runs)
    confusion, classes = sum(run.confusion.double() for run in runs), runs[0].classes
    table = Table("class", "predicted / true pixels", "predicted as, %")
    for name in chosen.classes:
        c = classes.index(name)
        predicted, true = confusion[:, c].sum(), confusion[c].sum()
        share = 100 * confusion[c] / true
        most = share.argsort(descending=True)[:5].tolist() if true else []
        ratio = f"{predicted / true:.2f}" if true else "-"
        table.add_row(name, ratio, ", ".join(f"{classes[i]} {share[i]:.0f}" for i in most) or "-")
    Console().print(table)


if __name__ == "__main__":
    main()
