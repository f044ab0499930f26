"""Time and peak memory of a training step of each method, on MiniCity with one network, by the Trainer.

How often a step puts a batch through the student, the teacher: DACS 2, 1; DSP 3, 1; EHTDI 5, 0 (one of them without a
gradient); DAFormer 2, 1; T2S-DA 3, 2 (one of each without the classifier). Methods train in turn in one process, on one
thread, as their MiniCity configs say. CPU times: "step" is forward, backward, optimiser and teacher; "step and loading"
adds rendering and loading, without workers, so that it counts in full. Wall time is what a user sees, with the config's
two loader processes; only a quiet machine gives it rightly. Peak memory is the peak of a step above what lies between
steps (networks, optimiser, gradients), and the peak of the whole process, from a process of its own for each method
(Linux). Ratios are to the first method.

Run as `python benchmarks/method_steps.py`, with options of `fit`, such as `--model.backward_per_view true`. The
first run counts the classes of MiniCity's labels, as training does.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import rich
import torch
from lightning.pytorch import Callback, Trainer
from measure import reset_peak, resident
from rich.console import Console
from rich.table import Table

from lightning_uda.cli import UDACLI, UDADataModule, UDAModule

CONFIGS = Path(__file__).parents[1] / "configs" / "experiment" / "minicity"
METHODS = ("dacs", "dsp", "ehtdi", "daformer", "t2sda")
BARS = {"dsp": 1.5}
"""Most that a method's step may take, as a multiple of DACS's."""
WARM_UP = 3
WORKERS = 2


class StepTimes(Callback):
    """Times of the steps after the warm-up, with and without what lies between two steps, and their peak memory."""

    def __init__(self, clock=time.process_time, memory=False):
        self.clock, self.memory = clock, memory
        self.starts, self.ends, self.held = [], [], 0.0

    def on_train_batch_start(self, *_):
        """A batch is there."""
        self.starts.append(self.clock())

    def on_train_batch_end(self, *_):
        """Its step is done."""
        self.ends.append(self.clock())
        if self.memory and len(self.ends) == WARM_UP:
            self.held = reset_peak()

    @property
    def steps(self):
        """Seconds from a batch to the end of its step."""
        return [end - start for start, end in zip(self.starts, self.ends, strict=True)][WARM_UP:]

    @property
    def with_loading(self):
        """Seconds from the end of a step to the end of the next."""
        return [second - first for first, second in zip(self.ends, self.ends[1:], strict=False)][WARM_UP:]


def load(method, *options):
    """Module and data of a MiniCity config, with options of `fit`."""
    cli = UDACLI(
        UDAModule,
        UDADataModule,
        save_config_callback=None,
        seed_everything_default=0,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        run=False,
        args=["--config", str(CONFIGS / f"{method}.yaml"), *options],
    )
    return cli.model, cli.datamodule


def train(module, data, workers, steps, times):
    """A short run that is timed."""
    data.num_workers = workers
    trainer = Trainer(
        max_steps=steps + WARM_UP,
        limit_val_batches=0,
        callbacks=[times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return times


def peaks(method, fit):
    """Peak of a step above what lies between steps, and of the process, in MB, from a process of its own."""
    command = [sys.executable, __file__, "--peak", method, *fit]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def print_peaks(method, fit):
    """What `peaks` reads."""
    times = train(*load(method, *fit), 0, 3, StepTimes(memory=True))
    highest = resident("VmHWM")
    print(json.dumps([highest - times.held, highest]))


def main():
    """Prints one row for each method, with the ratio to the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, help="names of MiniCity's experiments")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each method with and without workers; 0: peaks")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a run")
    parser.add_argument("--peak", help="print the peak memory of one method and exit")
    options, fit = parser.parse_known_args()
    torch.set_num_threads(1)
    rich.get_console().quiet = True  # the table of long-tail classes
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    if options.peak:
        print_peaks(options.peak, fit)
        return

    memory = {method: peaks(method, fit) for method in options.methods}
    methods = {method: load(method, *fit) for method in options.methods}
    seconds = {method: ([], [], []) for method in options.methods}
    for _ in range(options.rounds):
        for method, (module, data) in methods.items():
            cpu = train(module, data, 0, options.steps, StepTimes())
            wall = train(module, data, WORKERS, options.steps, StepTimes(time.perf_counter))
            for kept, found in zip(seconds[method], (cpu.steps, cpu.with_loading, wall.with_loading), strict=True):
                kept.extend(found)

    table = Table(title=f"MiniCity, one thread, {options.rounds} x {options.steps} steps; bars of a step {BARS}")
    table.add_column("method", no_wrap=True)
    times = ("step, CPU ms", "and loading, CPU ms", f"{WORKERS} workers, wall ms")
    for column in (*(times if options.rounds else ()), "peak of a step, MB", "process, MB"):
        table.add_column(column, justify="right")
    table.add_column("")
    figures = {
        method: [*(1000 * statistics.median(each) for each in seconds[method] if each), *memory[method]]
        for method in methods
    }
    first = figures[options.methods[0]]
    for method, row in figures.items():
        ratios = [own / other for own, other in zip(row, first, strict=True)]
        cells = [f"{own:.0f} ({ratio:.2f}x)" for own, ratio in zip(row, ratios, strict=True)]
        bar = BARS.get(method) if options.rounds else None
        verdict = "" if bar is None else "[green]ok" if ratios[0] <= bar else "[yellow]missed"
        table.add_row(method, *cells, verdict)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
