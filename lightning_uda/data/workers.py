"""How the processes of loaders start, and what is said when one dies."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pickle import Pickler
from types import FrameType, FunctionType
from typing import Any

from torch.utils.data import DataLoader

from lightning_uda.errors import MendableError


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
            WorkerError: If a process died, had no memory for a batch, or couldn't import what it is to work with.
        """
        if self.num_workers:
            self._require_importable()
        others = set(active_children())
        batches: Iterator[Any] = super().__iter__()
        if self.num_workers == 0:
            return batches
        _watch.listen()
        return _watched(batches, [child for child in active_children() if child not in others])

    def _require_importable(self) -> None:
        """Refuses classes and functions of a notebook's cells where a process starts empty and imports what it needs.

        A process that is forked has them. One that starts as a new Python finds them by the name of their module, and
        a notebook is none: it ends before it can say why.

        Raises:
            WorkerError: If there are such.
        """
        method = (self.multiprocessing_context or multiprocessing).get_start_method()
        main = sys.modules["__main__"]
        is_file = getattr(main, "__spec__", None) is not None or getattr(main, "__file__", None) is not None
        if method == "fork" or is_file:
            return
        collector = _NamesOfMain(io.BytesIO())
        with suppress(Exception):  # what can't be pickled is said where the process starts
            collector.dump((self.dataset, self.collate_fn, self.worker_init_fn))
        if collector.found:
            names = ", ".join(dict.fromkeys(collector.found))
            raise WorkerError(
                f"Found {names}, defined in a notebook or console, but processes of the data loader start by "
                f"{method!r} here and can't import it from there. Set data.num_workers to 0, or move {names} into a "
                "file (my_data.py) and import it."
            )


class _NamesOfMain(Pickler):
    """Notes which classes and functions are pickled by their name in `__main__`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: list[str] = []

    def reducer_override(self, value: Any) -> Any:
        """Leaves everything to the usual way."""
        if isinstance(value, type | FunctionType) and value.__module__ == "__main__":
            self.found.append(value.__qualname__)
        return NotImplemented


def _watched(batches: Iterator[Any], workers: Sequence[BaseProcess]) -> Iterator[Any]:
    while True:
        try:
            with _watch.over(workers):
                batch = next(batches)
        except StopIteration:
            return
        except MemoryError as error:
            raise WorkerError(_advice("found no memory for a batch", True, len(workers))) from error
        except RuntimeError:
            _require_alive(workers)  # where the system didn't tell, torch's loader looks every few seconds
            raise
        yield batch


def _require_alive(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        status = worker.exitcode
        if not status:  # it is at work, or done
            continue
        how = f"was killed ({signal.strsignal(-status)})" if status < 0 else f"ended with status {status}"
        raise WorkerError(_advice(f"(pid {worker.pid}) {how}", status in _OF_LACK_OF_MEMORY, len(workers)))


def _advice(what: str, is_of_memory: bool, num_workers: int) -> str:
    reason = "as a rule" if is_of_memory else "perhaps"
    return (
        f"A process of the data loader {what}, {reason} because memory ran out. Lower data.num_workers ({num_workers} "
        "now, 0 makes none) or data.batch_size, or give the machine or its container more memory, also as /dev/shm "
        "(docker run --shm-size)."
    )


class _Watch:
    """Looks after workers while a batch is waited for, and lets nobody else raise an error if one of them dies."""

    def __init__(self) -> None:
        self._workers: Sequence[BaseProcess] = ()
        self._before: Any = None

    def listen(self) -> None:
        """Takes the place of what torch's loader has called by the system; only the main thread may."""
        if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if handler != self._receive:
            self._before = handler
            signal.signal(signal.SIGCHLD, self._receive)

    @contextmanager
    def over(self, workers: Sequence[BaseProcess]) -> Iterator[None]:
        """A block that ends with an error if one of the workers dies, or has died before.

        Raises:
            WorkerError: If so.
        """
        _require_alive(workers)
        if threading.current_thread() is threading.main_thread():  # to which the system speaks
            self._workers = workers
        try:
            yield
        finally:
            self._workers = ()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if callable(self._before):
            with suppress(RuntimeError):  # of torch's loader
                self._before(number, frame)
        _require_alive(self._workers)


_OF_LACK_OF_MEMORY = [-getattr(signal, name) for name in ("SIGKILL", "SIGBUS") if hasattr(signal, name)]

_watch = _Watch()
