"""How the processes of loaders start."""

from __future__ import annotations

import os


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
