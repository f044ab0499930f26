"""Time and peak memory of a call, for the benchmarks."""

import gc
import statistics
import time
from pathlib import Path


def resident(name="VmRSS"):
    """Bytes that the process holds now (VmRSS) or held at most since the last reset (VmHWM), in MB; Linux only."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def reset_peak():
    """Forgets the peak and returns what the process holds now, in MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def peak_of(function):
    """Peak of a call above what the process held before, its results included, in MB; the first call warms up.

    Small blocks must go back to the system when freed: start the process with MALLOC_MMAP_THRESHOLD_=65536.
    """
    function()
    before = reset_peak()
    function()
    return resident("VmHWM") - before


def milliseconds(function):
    """CPU time of a call, of all threads; its results are dropped after the clock is read."""
    start = time.process_time()
    results = function()
    elapsed = 1000 * (time.process_time() - start)
    del results
    return elapsed


def interleaved(first, second, rounds):
    """Calls both in turn: medians of their times in ms, and of the ratios of each pair."""
    gc.collect()
    gc.disable()
    pairs = [(milliseconds(first), milliseconds(second)) for _ in range(rounds)]
    gc.enable()
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    return slow, fast, statistics.median(a / b for a, b in pairs)
