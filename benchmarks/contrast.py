"""EHTDI's contrasts, value and gradient: our code against its literal, naive transcription.

Run as `python benchmarks/contrast.py`. Both forms take the same logits, in turn, in one process and on one thread;
times are CPU times, medians over the rounds, and the ratio is the median of the paired ratios. Results are compared in
the same run, and the script fails if they disagree. Peak memory is the peak above what the process held before the
call, of both images together, measured in another process (Linux).

Inputs: batch of 2, 65 x 65, 19 classes, logits of two similar views; labels of ten classes and some void.
"""

import argparse
import json
import os
import subprocess
import sys

import naive
import torch
import torch.nn.functional as F
from measure import interleaved, peak_of
from rich.console import Console
from rich.table import Table

from lightning_uda.terms.contrast import pixel_contrast, prototype_contrast

BATCH, CLASSES, SIDE = 2, 19, 65
BARS = {"PiCL": (5, 80), "ProCL": (3, 5)}
"""Least ratio, and most peak memory in MB."""


def inputs():
    """Logits of two views, and labels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(BATCH, CLASSES, 9, 9, generator=generator)
    first = 4 * F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=True)
    second = first + torch.randn(first.shape, generator=generator)
    labels = first.argmax(1)
    return first, second, labels.masked_fill(labels > 9, 255)


def pieces():
    """Naive and own form of each, which give the loss and both gradients."""
    first, second, labels = inputs()

    def of(loss, *arguments):
        views = [first.clone().requires_grad_(), second.clone().requires_grad_()]
        value = loss(*views, *arguments)
        value.backward()
        return [value.detach(), *(view.grad for view in views)]

    return {
        "PiCL": (lambda: of(naive.pixel_contrast, 20.0), lambda: of(pixel_contrast, 20.0)),
        "ProCL": (lambda: of(naive.prototype_contrast, labels, 7.0), lambda: of(prototype_contrast, labels, 7.0)),
    }


def peak(name, side):
    """Peak memory in MB of a form, from a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--peak", name, str(side)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def main():
    """Prints one row for each contrast; fails if results disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "SIDE"), help="print the peak of one form and exit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(json.dumps(peak_of(pieces()[options.peak[0]][int(options.peak[1])])))
        return
    table = Table(title=f"batch {BATCH}, {SIDE} x {SIDE}, {CLASSES} classes, one thread, {options.rounds} rounds")
    for column in ("", "naive ms", "ours ms", "ratio", "bar", "naive MB", "ours MB", "bar", "furthest", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    failed = False
    for name, (slow, fast) in pieces().items():
        furthest = max(((a - b).norm() / a.norm()).item() for a, b in zip(slow(), fast(), strict=True))
        before, after, ratio = interleaved(slow, fast, options.rounds)
        memory = [peak(name, side) for side in range(2)]
        least, most = BARS[name]
        failed |= furthest > 1e-5
        held = ratio >= least and memory[1] <= most and furthest <= 1e-5
        table.add_row(
            *(name, f"{before:.1f}", f"{after:.1f}", f"{ratio:.1f}x", f"{least}x"),
            *(f"{memory[0]:.0f}", f"{memory[1]:.1f}", f"{most}", f"{furthest:.0e}"),
            "[green]ok" if held else "[yellow]missed",
        )
    Console(width=110).print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
