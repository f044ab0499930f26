"""T2S-DA's pull, value and gradient: our code against its literal, naive transcription, a loop over classes.

Run as `python benchmarks/pull.py`. Both forms take the same features and draws, in turn, in one process and on one
thread; times are CPU times, medians over the rounds, and the ratio is the median of the paired ratios. Results are
compared in the same run, and the script fails if they disagree. Drawing is part of our time; the naive form is given
what it draws. Peak memory is the peak above what the process held before the call, measured in another process (Linux).

Inputs: batch of 2, features of 256 channels, 65 x 65 (ResNet-101) and 16 x 16 (MiT), 19 classes of which all are
there, at about their shares in Cityscapes, and some void; 128 queries of a class in the mean, 1024 negatives.
"""

import argparse
import json
import os
import subprocess
import sys

import naive
import torch
from measure import interleaved, peak_of
from rich.console import Console
from rich.table import Table
from surroundings import FREQUENCY, rank_of, smooth

from lightning_uda.terms.pull_draws import draw, unreliable
from lightning_uda.terms.pull_loss import Keys, pull

BATCH, CHANNELS, CLASSES = 2, 256, 19
SIDES = {"65 x 65": 65, "16 x 16": 16}
LEAST, MOST = 2, 90
"""Least ratio, and most peak memory in MB."""


class Inputs:
    """Features, labels and what is drawn of them."""

    def __init__(self, side):
        generator = torch.Generator().manual_seed(0)
        shares = (torch.tensor(FREQUENCY) / sum(FREQUENCY)).cumsum(0)[:-1]
        shape = (BATCH, side, side)
        self.labels, self.pseudo_labels = (
            torch.bucketize(rank_of(smooth(*shape, generator=generator)), shares) for _ in range(2)
        )
        self.labels = self.labels.masked_fill(rank_of(smooth(*shape, generator=generator)) > 0.985, 255)
        self.confidence = torch.rand(shape, generator=generator)
        self.features = [torch.randn(BATCH, CHANNELS, side, side, generator=generator).relu() for _ in range(3)]
        self.weights = torch.full((CLASSES,), 1 / CLASSES)
        self.ranks = self.ranks_of(self.draws())

    def draws(self):
        """Our draws, the same in every call."""
        target = unreliable(self.pseudo_labels, self.confidence)
        return draw(self.labels, target, CLASSES, torch.Generator().manual_seed(1))

    def ranks_of(self, draws):
        """The same draws as numbers among each class's candidates, for the naive form."""
        labels, below = (
            self.labels.flatten(),
            self.confidence.flatten() < torch.quantile(self.confidence.flatten(), 0.5),
        )
        ranks, start = {}, 0
        for c, count in enumerate(draws.counts.tolist()):
            pools = (
                labels == c,
                (labels != c) & (labels != naive.IGNORE_INDEX),
                (self.pseudo_labels.flatten() != c) & below,
            )
            near, far = draws.negatives[c].chunk(2)
            pixels = (draws.queries[start : start + count], near, far - labels.numel())
            ranks[c] = tuple((pool.cumsum(0) - 1)[chosen] for pool, chosen in zip(pools, pixels, strict=True))
            start += count
        return ranks

    def naive(self):
        """Loss and gradient of the loop."""
        queries = self.features[0].clone().requires_grad_()
        features = (queries, *self.features[1:])
        loss = naive.pull(features, self.labels, self.pseudo_labels, self.confidence, self.ranks, self.weights)
        loss.backward()
        return loss.detach(), queries.grad

    def ours(self):
        """Loss and gradient of our code."""
        queries = self.features[0].clone().requires_grad_()
        source = Keys(self.features[1], self.labels)
        target = Keys(self.features[2], self.pseudo_labels, self.confidence)
        loss = pull(queries, source, target, self.weights, torch.Generator().manual_seed(1))
        loss.backward()
        return loss.detach(), queries.grad


def peak(name, form):
    """Peak memory in MB of a form, from a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--peak", name, form]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def main():
    """Prints one row for each size of features; fails if results disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("SIZE", "FORM"), help="print the peak of one form and exit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(json.dumps(peak_of(getattr(Inputs(SIDES[options.peak[0]]), options.peak[1]))))
        return
    table = Table(title=f"batch {BATCH}, {CHANNELS} channels, {CLASSES} classes, one thread, {options.rounds} rounds")
    for column in ("", "naive ms", "ours ms", "ratio", "bar", "naive MB", "ours MB", "bar", "furthest", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    failed = False
    for name, side in SIDES.items():
        inputs = Inputs(side)
        results = zip(inputs.naive(), inputs.ours(), strict=True)
        furthest = max(((a - b).norm() / a.norm()).item() for a, b in results)
        before, after, ratio = interleaved(inputs.naive, inputs.ours, options.rounds)
        memory = [peak(name, form) for form in ("naive", "ours")]
        failed |= furthest > 1e-5
        held = ratio >= LEAST and memory[1] <= MOST and furthest <= 1e-5
        table.add_row(
            *(name, f"{before:.1f}", f"{after:.1f}", f"{ratio:.1f}x", f"{LEAST}x"),
            *(f"{memory[0]:.0f}", f"{memory[1]:.0f}", f"{MOST}", f"{furthest:.0e}"),
            "[green]ok" if held else "[yellow]missed",
        )
    Console(width=110).print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
