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
    return f"error: {_said(cause(error)).strip()}\n(LIGHTNING_UDA_TRACEBACK=1 shows where it came from.)"


def _said(error: BaseException) -> str:
    """The message of an error, of a worker's too."""
    text = str(error)
    of_worker = re.match(r"Caught (\w+) in DataLoader worker", text)
    return text.rpartition(f"{of_worker[1]}: ")[2] if of_worker else text


def explained(error: BaseException) -> str | None:
    """What an error of torch's means to the user; `None` where that isn't known.

    Known are memory that is full, of a GPU or of the machine, images that are too small for the network, and another
    process of the run that is gone.
    """
    if type(error).__name__ == "OutOfMemoryError":
        return f"error: The GPU's memory is full. {LESS_MEMORY}\n({str(error).splitlines()[0]})"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return f"error: The machine's memory is full. {LESS_MEMORY}\n({_said(error).splitlines()[0]})"
    if is_of_small_images(error):
        return f"error: Images are too small for the network; give larger ones or crops.\n({_said(error).strip()})"
    return _LOST_PROCESS if is_of_lost_process(error) else None


def is_of_small_images(error: BaseException) -> bool:
    """Whether an error is that of a layer whose kernel, or padding, is larger than what is left of an image."""
    return any(text in str(error) for text in _TOO_SMALL)


def is_of_lost_process(error: BaseException) -> bool:
    """Whether an error is that of a process that waits for another one of its run, which is gone."""
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or "gloo/transport" in str(error)


_TOO_SMALL = ("Kernel size can't be greater than actual input size", "Padding size should be less than")
_LOST_PROCESS = (
    "error: Another process of this run has ended, or can't be reached, so that this one ends too. What it said tells "
    "why; if it said nothing, it was killed, as a rule because memory ran out.\n"
    "(LIGHTNING_UDA_TRACEBACK=1 shows what this one waited for.)"
)
LESS_MEMORY = (
    "In the order of what it costs: --trainer.precision bf16-mixed; --model.backward_per_view true (the activations of "
    "one view at a time, no slower); --model.network.checkpointing true (a third slower); a smaller "
    "--data.batch_size, or crop."
)


def cause(error: BaseException) -> BaseException:
    """Of the parser's account of a constructor's error that error, which itself says what is wrong."""
    while str(error).startswith("Does not validate against any") and error.__cause__ is not None:
        error = error.__cause__
    return error


def did_you_mean(found: str, names: Iterable[str]) -> str:
    """A question for the nearest of some names, which is empty if none is near."""
    close = get_close_matches(found, list(dict.fromkeys(names)), n=1)
    return f"Did you mean {close[0]}?" if close else ""
