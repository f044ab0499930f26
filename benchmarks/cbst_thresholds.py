"""Time and memory of CBST's thresholds: collecting and sorting against one histogram, and against two radix passes.

Run as `python benchmarks/cbst_thresholds.py --maps 50 200`. Each form runs in a process of its own, on one thread, over
the same synthetic maps of confidences and classes, which are drawn anew for each pass. Figures are those of the search
alone, without drawing: CPU seconds, and the peak of its memory above what the process holds with one map (Linux).

"collect" is the published way, written down literally: every 4th pixel of each class is appended to a growing array,
and each class sorted as a Python list. It gets slow and large, so `--naive-max` leaves it out above that many maps.
The histogram and the radix search take all pixels. The last figure is the peak of all label generation around the
searches: full-size probabilities, averaged with those of the mirrored image and weighted by a spatial prior.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lightning_uda.resize import upsample
from lightning_uda.self_training import LogitHistogram, RadixSelect, assign_pseudo_labels, resize_prior

NUM_CLASSES = 19
PORTION = Decimal("0.2")
STRIDE = 4
FORMS = ("collect", "histogram", "radix")
RATIO_BAR, MEMORY_BAR, ERROR_BAR, ROUND_BAR = 7, 40, 2e-5, 2000


def draw_map(index, size):
    """Confidences float32 and classes uint8 of an image: smooth, frequent classes saturated and rare ones unsure."""
    generator = torch.Generator().manual_seed(index)
    small = (1, 1, size[0] // 8, size[1] // 8)
    frequency = torch.arange(1, NUM_CLASSES + 1).float() ** -1.5
    blocks = torch.multinomial(frequency, small[2] * small[3] // 16, True, generator=generator)
    classes = blocks.view(small[2] // 4, small[3] // 4).to(torch.uint8)
    certainty = 2 + 6 * frequency[blocks].view(1, 1, *classes.shape)
    field = F.interpolate(certainty, size=small[2:]) + 2 * torch.randn(small, generator=generator)
    confidence = F.interpolate(field, size=size, mode="bilinear").sigmoid_().clamp_(min=1 / NUM_CLASSES)
    return confidence[0, 0], classes.repeat_interleave(32, 0).repeat_interleave(32, 1)


class Meter:
    """CPU seconds of all measured blocks together, and the most memory in any of them above that at the start."""

    def __init__(self):
        self.seconds, self.megabytes = 0.0, 0.0
        self.held = memory("VmRSS")

    @contextmanager
    def measured(self):
        """Measures a block."""
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        start = time.process_time()
        yield
        self.seconds += time.process_time() - start
        self.megabytes = max(self.megabytes, memory("VmHWM") - self.held)


def memory(field):
    """A figure of this process, in MB."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def collect(maps, size, meter):
    """The published way: thresholds as a list."""
    kept = [np.zeros(0, np.float32) for _ in range(NUM_CLASSES)]
    for index in range(maps):
        confidence, classes = (part.numpy() for part in draw_map(index, size))
        with meter.measured():
            for c in range(NUM_CLASSES):
                kept[c] = np.append(kept[c], confidence[classes == c][::STRIDE])
    thresholds = []
    with meter.measured():
        for values in kept:
            ordered = sorted(values.tolist(), reverse=True)
            rank = int(PORTION * len(ordered))
            thresholds.append(ordered[rank - 1] if rank else float("inf"))
    return thresholds


def search(found, maps, size, meter):
    """Ours: thresholds as a list."""
    with meter.measured():
        found.start(NUM_CLASSES, torch.device("cpu"))
    again = True
    while again:
        for index in range(maps):
            confidence, classes = draw_map(index, size)
            with meter.measured():
                found.update(confidence, classes)
        with meter.measured():
            again = found.end_pass(PORTION)
    return found.thresholds.tolist()


def whole_round(maps, size):
    """All that label generation holds in memory beside the network, with both searches: labels of the last image."""
    kept = [torch.randn(1, NUM_CLASSES, size[0] // 8, size[1] // 8) for _ in range(2 * maps)]
    prior = resize_prior(torch.rand(NUM_CLASSES, 256, 512), size)

    def scores(index):
        """Of an image and its mirror image."""
        probs = upsample(kept[2 * index], size).softmax(dim=1)
        probs += upsample(kept[2 * index + 1], size).softmax(dim=1).flip(-1)
        return probs.mul_(0.5)

    histogram, radix = LogitHistogram(), RadixSelect()
    for found, weight in ((histogram, None), (radix, prior)):
        found.start(NUM_CLASSES, torch.device("cpu"))
        again = True
        while again:
            for index in range(maps):
                probs = scores(index)
                found.update(*(probs if weight is None else probs.mul_(weight)).max(dim=1))
            again = found.end_pass(PORTION)
    for index in range(maps):
        labels = assign_pseudo_labels(scores(index).mul_(prior), radix.thresholds)
    return labels


def run_here(form, maps, size):
    """Runs one form and prints its figures as JSON."""
    torch.set_num_threads(1)
    for found in (LogitHistogram(16), RadixSelect()):  # brings the libraries' code into memory
        found.start(1, torch.device("cpu"))
        for _ in range(2):
            found.update(torch.full((64,), 0.5), torch.zeros(64, dtype=torch.uint8))
            if not found.end_pass(PORTION):
                break
    for index in range(3):
        confidence, classes = draw_map(index, size)  # as in the loops to come, so that the heap is as large
    meter, thresholds = Meter(), []
    del confidence, classes
    if form == "collect":
        thresholds = collect(maps, size, meter)
    elif form == "round":
        with meter.measured():
            whole_round(maps, size)
    else:
        thresholds = search(LogitHistogram() if form == "histogram" else RadixSelect(), maps, size, meter)
    print(json.dumps({"seconds": meter.seconds, "megabytes": meter.megabytes, "thresholds": thresholds}))


def run(form, maps, size):
    """Figures of one form, from a process of its own, which gives large blocks back when they are freed.

    Else what drawing leaves in the heap counts in some runs and not in others.
    """
    command = [sys.executable, __file__, "--form", form, "--maps", str(maps), "--size", *map(str, size)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def furthest(found, exact):
    """Largest difference of two lists of thresholds."""
    return max((abs(a - b) for a, b in zip(found, exact, strict=True) if a != b), default=0.0)


def compare(maps, size, naive):
    """Prints the figures of one number of maps."""
    results = {form: run(form, maps, size) for form in FORMS if naive or form != "collect"}
    exact = results["radix"]["thresholds"]
    print(f"{maps} maps of {size[0]} x {size[1]}, {NUM_CLASSES} classes, p = {PORTION}")
    for form, result in results.items():
        ratio = f"{results['collect']['seconds'] / result['seconds']:6.1f}x" if naive else "      -"
        print(
            f"  {form:10}{result['seconds']:9.2f} s {ratio} {result['megabytes']:9.0f} MB   furthest from exact "
            f"{furthest(result['thresholds'], exact):.1e}"
        )
    width = 20.07 / 65535
    for found, true in zip(results["histogram"]["thresholds"], exact, strict=True):
        if found != true:
            bound = width * true * (1 - true) * (1 + width) + 2**-24
            assert 0 <= true - found <= bound, f"the histogram's {found} breaks its bound for {true}"


def main():
    """Prints one block per number of maps, and the memory of a round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, nargs="+", default=[50], help="numbers of images")
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 2048], help="height and width, multiples of 32")
    parser.add_argument("--naive-max", type=int, default=200, help="most maps for the published way")
    parser.add_argument("--form", choices=(*FORMS, "round"), help="run one form in this process and print JSON")
    options = parser.parse_args()
    size = tuple(options.size)
    if options.form:
        run_here(options.form, options.maps[0], size)
        return
    for maps in options.maps:
        compare(maps, size, maps <= options.naive_max)
    megabytes = run("round", 3, size)["megabytes"]
    print(f"label generation beside the network, {size[0]} x {size[1]}: {megabytes:.0f} MB (bar: {ROUND_BAR} MB)")
    print(f"bars at 50 maps: {RATIO_BAR}x, {MEMORY_BAR} MB for any number of maps, {ERROR_BAR:.0e} from exact")


if __name__ == "__main__":
    main()
