"""`lightning-uda report`: one table and one page of several runs."""

from __future__ import annotations

from pathlib import Path

from lightning_uda.commands.options import CommandParser


def report_runs(arguments: list[str]) -> None:
    """Prints the table of several runs and writes their page.

    Args:
        arguments: `RUN [RUN ...] [--against RUN] [--output FILE]`.
    """
    parser = CommandParser(prog="lightning-uda report", description="Tabulates runs and writes their page.")
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders; of one with versions the latest that trained.")
    parser.add_argument("--against", type=Path, help="A run; the gain of every other one over it is shown.")
    parser.add_argument("--output", type=Path, default=Path("runs/report.html"), help="The page to write.")
    chosen = parser.parse_args(arguments)
    from lightning_uda.report import report  # brings torch and matplotlib, which help does without

    report(chosen.runs, chosen.output, chosen.against)
