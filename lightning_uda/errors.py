"""Errors that the user can mend, in one message."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pickle import UnpicklingError


class MendableError(RuntimeError):
    """An error whose message names what was found, what was expected and the fix."""


READABLE = (MendableError, OSError, ValueError, FloatingPointError, UnpicklingError)
"""Errors whose message tells the user what to mend; others are the program's own faults and show where they arose."""


def readable(error: BaseException) -> str:
    """An error in one message: of the parser's account of a constructor's error, and of a worker's, its cause only."""
    text = str(cause(error))
    if of_worker := re.match(r"Caught (\w+) in DataLoader worker", text):
        text = text.rpartition(f"{of_worker[1]}: ")[2]
    return f"error: {text.strip()}\n(LIGHTNING_UDA_TRACEBACK=1 shows where it came from.)"


def cause(error: BaseException) -> BaseException:
    """Of the parser's account of a constructor's error that error, which itself says what is wrong."""
    while str(error).startswith("Does not validate against any") and error.__cause__ is not None:
        error = error.__cause__
    return error


def did_you_mean(found: str, names: Iterable[str]) -> str:
    """A question for the nearest of some names, which is empty if none is near."""
    close = get_close_matches(found, list(dict.fromkeys(names)), n=1)
    return f"Did you mean {close[0]}?" if close else ""
