"""Ctrl-C and SIGTERM while there is nothing to save: the program ends in order; and the status of other ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import rich

TIME_IS_UP = 124
"""Exit status of a training that `trainer.max_time` ended before its last step, as that of the command `timeout`."""


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Ends the program in order, with status 130 or 143, at a SIGINT or SIGTERM while there is nothing to save."""
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if may_listen(number)]
    handlers = {number: signal.signal(number, _exit) for number in heard}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def may_listen(number: int) -> bool:
    """Whether a signal isn't ignored, as by `nohup`, and this is the main thread, which alone may listen."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(number) is not signal.SIG_IGN


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        rich.get_console().print(f"Stopped by {signal.Signals(number).name}.", highlight=False)
    raise SystemExit(128 + number)
