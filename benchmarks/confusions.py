"""What classes are taken for: `python benchmarks/confusions.py runs/minicity/seed_*/dsp --classes bicycle car`.

Needs runs with the callback `ConfusionWriter`; their matrices of the last evaluation are added. Prints for each class
how much of it is predicted as what, and how often it is predicted against how often it occurs.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_uda.metrics import read_confusion


def latest(run):
    """Matrix and class names of the last version of a run."""
    found = sorted(run.glob("version_*/confusion_val.csv"), key=lambda file: (len(file.parent.name), file.parent.name))
    if not found:
        raise SystemExit(f"error: {run}: no confusion_val.csv; train it with --trainer.callbacks+=ConfusionWriter")
    return read_confusion(found[-1])


def main():
    """Prints one row for each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders, such as those of one row over seeds.")
    parser.add_argument("--classes", nargs="+", required=True, help="Names of the classes to look at.")
    chosen = parser.parse_args()
    matrices, names = zip(*map(latest, chosen.runs), strict=True)
    confusion, classes = sum(matrix.double() for matrix in matrices), list(names[0])
    table = Table("class", "predicted / true pixels", "predicted as, %")
    for name in chosen.classes:
        c = classes.index(name)
        share = 100 * confusion[c] / confusion[c].sum()
        most = share.argsort(descending=True)[:5].tolist()
        table.add_row(
            name,
            f"{confusion[:, c].sum() / confusion[c].sum():.2f}",
            ", ".join(f"{classes[i]} {share[i]:.0f}" for i in most),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
