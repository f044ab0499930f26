"""Time and peak memory of training steps at the papers' sizes: `python benchmarks/full_size_step.py`.

Each experiment's method and network at their real size, with random weights and random images of its crop size, two of
each domain: the algorithm, its terms, backward and the optimiser's step, on one thread. The first step isn't counted.
Peak memory is that of the whole process, from a process of its own for each experiment (Linux).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from measure import resident
from rich.console import Console
from rich.table import Table

from lightning_uda.includes import resolve
from lightning_uda.methods import UDAModule

EXPERIMENTS = Path(__file__).parents[1] / "configs" / "experiment" / "gta5_to_cityscapes"
SIZES = {"dacs_mit_b5": 512, "daformer": 512, "t2sda_daformer": 512, "hrda": 1024, "t2sda": 512}
"""Experiments, and the side of their crops."""


def module_of(experiment, checkpointing):
    """The method of an experiment with its network at its real size and random weights."""
    path = EXPERIMENTS / f"{experiment}.yaml"
    model = resolve(yaml.safe_load(path.read_text()), path.parent, yaml.safe_load)["model"]
    network = model["init_args"]["network"]["init_args"]
    network["num_classes"] = 19
    network["backbone"]["init_args"]["pretrained"] = False
    network["checkpointing"] = checkpointing
    model["init_args"]["label_space"] = "cityscapes"
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(UDAModule, "model")
    module = parser.instantiate_classes(parser.parse_object({"model": model})).model
    module.log_step = lambda values: None
    return module


def measure(experiment, checkpointing, per_view, steps):
    """Prints seconds of a step and the peak of the process in GB."""
    torch.manual_seed(0)
    module, side = module_of(experiment, checkpointing), SIZES[experiment]
    module.backward_per_view = per_view
    module.trainer = Trainer(accelerator="cpu", barebones=True)
    optimizer = module.optimizer([*module.student.parameter_groups(), *module.student.attached_groups()])
    module.trainer.strategy.connect(module)
    module.trainer.optimizers = [optimizer]
    image = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, 19, (2, side // 32, side // 32)).repeat_interleave(32, 1).repeat_interleave(32, 2).byte()
    batch = {"source": {"image": image, "mask": labels}, "target": {"image": image.flip(0)}}
    seconds = []
    for number in range(steps + 1):
        start = time.perf_counter()
        module.training_step(batch, number).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(json.dumps([statistics.median(seconds[1:]), resident("VmHWM") / 1000]))


def main():
    """Prints one row for each experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed")
    parser.add_argument("--checkpointing", action="store_true", help="blocks of the backbone are computed again")
    parser.add_argument("--per_view", action="store_true", help="model.backward_per_view")
    parser.add_argument("--one", action="store_true", help="measure the one experiment given in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        measure(options.experiments[0], options.checkpointing, options.per_view, options.steps)
        return
    said = ", checkpointing" * options.checkpointing + ", backward per view" * options.per_view
    table = Table(title="Steps of two images of each domain, one thread" + said)
    for column in ("experiment", "crop", "seconds", "peak, GB"):
        table.add_column(column, justify="left" if column == "experiment" else "right")
    for experiment in options.experiments:
        command = [sys.executable, __file__, "--one", "--experiments", experiment, "--steps", str(options.steps)]
        command += ["--checkpointing"] * options.checkpointing + ["--per_view"] * options.per_view
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        seconds, peak = json.loads(done.stdout.splitlines()[-1])
        table.add_row(experiment, str(SIZES[experiment]), f"{seconds:.1f}", f"{peak:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
