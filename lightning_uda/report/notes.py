"""What runs say of themselves: how their parameters were updated, what they took over from a published program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from lightning_uda.report.runs import Run

_WARNING = "warning: "


@dataclass(frozen=True)
class Note:
    """A line of `notes.txt`.

    Attributes:
        text: The sentence.
        titles: Titles of the runs that say it; none if all runs of the report do.
        warning: Whether the reader should be warned.
    """

    text: str
    titles: tuple[str, ...]
    warning: bool

    def __str__(self) -> str:
        """The note for a console, with the runs that it is about."""
        return _WARNING * self.warning + f"{', '.join(self.titles)}: " * bool(self.titles) + self.text


def notes_of(runs: Sequence[Run]) -> list[Note]:
    """The notes of runs, each once, in the order in which they first occur."""
    said: dict[str, dict[str, None]] = {}
    for run in runs:
        for line in filter(None, map(str.strip, run.notes)):
            said.setdefault(line, {})[run.title] = None
    return [
        Note(line.removeprefix(_WARNING), () if len(who) == len(runs) else tuple(who), line.startswith(_WARNING))
        for line, who in said.items()
    ]


def print_notes(runs: Sequence[Run], console: Console) -> None:
    """Prints the notes of runs, warnings in yellow."""
    for note in notes_of(runs):
        console.print(str(note), style="yellow" if note.warning else "dim", highlight=False, markup=False)
