"""How the processes of loaders start, and what is said when one dies."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from lightning_uda.errors import MendableError

_DEAD = re.compile(r"DataLoader worker \(pid\S* ([\d, ]+)\) (?:is )?(killed by signal: [^.]+|exited unexpectedly)")


class WorkerError(MendableError):
    """A loader's process died, as a rule because memory ran out; the message says what to do."""


def start_worker(worker: int) -> None:
    """Puts a worker out of reach of Ctrl-C, and of signals to a whole group of processes.

    The process that trains gets them and still needs its workers for the step that it finishes; it ends them itself.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def start_training_worker(worker: int) -> None:
    """The same, and lets the network's threads go before a worker.

    On a CPU a worker would stall them otherwise, as they wait for each other.
    """
    start_worker(worker)
    os.nice(10)


class WorkerLoader(DataLoader[Any]):
    """A loader whose dead process is one error, raised where a batch is asked for.

    The plain loader raises it wherever the program is at that moment, so also in the middle of a step or of a file
    that is being written.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches.

        Raises:
            WorkerError: If a process died, or had no memory for a batch.
        """
        batches: Iterator[Any] = super().__iter__()
        if self.num_workers == 0:
            return batches
        _deaths.listen()
        return _watched(batches, self.num_workers)


def _watched(batches: Iterator[Any], num_workers: int) -> Iterator[Any]:
    while True:
        try:
            with _deaths.heard():
                batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, MemoryError) as error:
            found = _DEAD.match(str(error))
            if found is None and not isinstance(error, MemoryError):
                raise
            what = "found no memory for a batch" if found is None else f"(pid {found[1]}) was {found[2]}"
            raise WorkerError(_advice(what.replace("was exited", "exited"), num_workers)) from error
        yield batch


def _advice(what: str, num_workers: int) -> str:
    shared = " for shared memory (/dev/shm; docker run --shm-size)" * ("Bus error" in what)
    return (
        f"A process of the data loader {what}, as a rule because memory ran out. Lower data.num_workers "
        f"({num_workers} now, 0 makes none) or data.batch_size, or give the machine or its container more room{shared}."
    )


class _Deaths:
    """Hands the system's word that a child died to torch's loader while somebody waits for a batch, and only then."""

    def __init__(self) -> None:
        self._loader: Callable[[int, FrameType | None], Any] | None = None
        self._waits = self._unheard = False

    def listen(self) -> None:
        """Takes the place of what torch's loader has called by the system; only the main thread may."""
        if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if handler != self._receive and callable(handler):
            self._loader = handler
            signal.signal(signal.SIGCHLD, self._receive)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """A block in which torch's loader raises an error if a worker of it died, now or before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._waits = True
        try:
            if self._unheard:
                self._tell(signal.SIGCHLD, None)
            yield
        finally:
            self._waits = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._waits:
            self._tell(number, frame)
        else:
            self._unheard = True

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._unheard = False
        if self._loader is not None:
            self._loader(number, frame)


_deaths = _Deaths()
