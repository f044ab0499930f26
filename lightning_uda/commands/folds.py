"""`lightning-uda folds`: the folds of cross-validation pooled."""

from __future__ import annotations

from pathlib import Path

from lightning_uda.commands.options import CommandParser


def pool_folds(arguments: list[str]) -> None:
    """Prints the scores of folds, one run each, and of their pooled matrices, and writes them as CSV.

    Args:
        arguments: `RUN [RUN ...] [--output FILE]`.
    """
    parser = CommandParser(prog="lightning-uda folds", description="Pools the folds of cross-validation.")
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders with `confusions`.")
    parser.add_argument("--output", type=Path, default=Path("runs/folds.csv"), help="The table to write.")
    chosen = parser.parse_args(arguments)
    from lightning_uda.report.folds import report_folds  # brings torch, which help does without

    report_folds(chosen.runs, chosen.output)
