"""One table and one self-contained HTML page of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rich

from lightning_uda.files import require_file_place
from lightning_uda.metrics import MIOU_NOTE
from lightning_uda.report.notes import print_notes
from lightning_uda.report.page import page_path, write_page
from lightning_uda.report.run_files import ReportError
from lightning_uda.report.runs import Run, load_runs
from lightning_uda.report.table import best_miou, losses_table, table_of

__all__ = ["ReportError", "Run", "build_report", "load_runs", "report"]


def report(runs: Sequence[Path], output: Path, against: Path | None = None) -> None:
    """Prints tables of several runs' IoUs and losses, best mIoUs and notes, writes their page and prints its path last.

    Args:
        runs: Run folders, as `build_report` takes them.
        output: The page to write.
        against: A run over which the gain of every other one is shown; `None` shows that of the last over the first.

    Raises:
        OSError: If the page can't be written.
        ReportError: If a folder holds no evaluation or a damaged file, or the runs have different classes.
    """
    require_file_place(page_path(output), "--output")
    loaded = load_runs(runs, against)
    compared = loaded[-1:] if against is None else loaded[1:]
    console = rich.get_console()
    console.print(table_of(loaded, compared))
    console.print(MIOU_NOTE, style="dim", highlight=False)
    if losses := losses_table(loaded):
        console.print(losses)
    for run in loaded:
        if best := best_miou(run):
            console.print(f"Best mIoU of {run.title}: {best}.", highlight=False, markup=False)
    print_notes(loaded, console)
    for run in loaded:
        if not run.finished:
            console.print(f"{run.title} is not finished: step {run.last_step} of {run.max_steps}.", style="yellow")
    console.print(str(write_page(loaded, output, compared)), soft_wrap=True, highlight=False, markup=False)


def build_report(runs: Sequence[Path], output: Path, against: Path | None = None) -> Path:
    """Writes one HTML page that needs no other file, no network and no script.

    Args:
        runs: Run folders, in the order of the columns: folders with `confusions`, or folders of `version_<k>` folders,
            of which the latest that trained is taken.
        output: The page to write, or the folder of a `report.html`. A page that is there already is kept as
            `<stem>.<n>.html`.
        against: A run over which the gain of every other one is shown; `None` shows that of the last over the first.

    Returns:
        Path of the page.

    Raises:
        OSError: If the page can't be written.
        ReportError: If a folder holds no evaluation or a damaged file, or the runs have different classes.
    """
    loaded = load_runs(runs, against)
    return write_page(loaded, output, loaded[-1:] if against is None else loaded[1:])
