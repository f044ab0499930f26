"""Time and memory of steps at the papers' sizes: `python benchmarks/full_size_step.py`, on a GPU if there is one.

Methods with a network at its real size, random weights and random images of the crop size, `--images` of each domain:
the algorithm, its terms, backward, the optimiser's and the teacher's step, on one thread.

On a CPU every method has a process of its own; time is its CPU time, which other work beside it changes little, memory
its peak (Linux), and both are said after every step and, with `--share`, every pass of the networks. On a GPU the first
steps aren't counted, and methods follow recipes: "fp32" without TF32, "tf32" in convolutions and matrix products,
"bf16" (`--trainer.precision bf16-mixed`, TF32 where autocasting leaves float32), then with cuDNN's search for the
fastest algorithms ("benchmark"), in the memory format channels_last, and with the backbones compiled. "faster" is
against the first recipe; "network" is what the networks' passes take by themselves, as a share of the step; memory is
the most that was allocated; "syncs" is how often a step waited for the GPU.
"""

import argparse
import copy
import csv
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from measure import resident
from rich.console import Console
from rich.table import Table

from lightning_uda.callbacks import EMATeacher
from lightning_uda.includes import resolve
from lightning_uda.methods import UDAModule

CONFIGS = Path(__file__).parents[1] / "configs"
MIT = "daformer_mit_b5"
STEPS = {
    "DACS, R101": ("dacs", None, 512),
    "DSP, R101": ("dsp", None, 512),
    "EHTDI, R101": ("ehtdi", None, 512),
    "DAFormer, R101": ("daformer_resnet101", None, 512),
    "T2S-DA, R101": ("t2sda", None, 512),
    "CBST, R101": ("cbst", None, 512),
    "HRDA, R101": ("hrda", "hrda_resnet101_v1c", 1024),
    "DACS, MiT-B5": ("dacs_mit_b5", None, 512),
    "DSP, MiT-B5": ("dsp", MIT, 512),
    "EHTDI, MiT-B5": ("ehtdi", MIT, 512),
    "DAFormer, MiT-B5": ("daformer", None, 512),
    "T2S-DA, MiT-B5": ("t2sda_daformer", None, 512),
    "CBST, MiT-B5": ("cbst", MIT, 512),
    "HRDA, MiT-B5": ("hrda", None, 1024),
}
"""Experiment of GTA5 to Cityscapes, network if not its own, and side of the crops."""

RECIPES = (
    "fp32",
    "tf32",
    "bf16",
    "bf16+benchmark",
    "bf16+channels_last",
    "bf16+benchmark+channels_last",
    "bf16+compile",
)
COLUMNS = ("method", "crop", "recipe", "ms", "faster", "network", "peak GB", "syncs")
WARM_UP = 4  # jitter and blur come and go with the step
PASSES = ("outputs_for_training", "outputs", "encode", "logits_and_levels", "forward")
"""The ways into a network."""


def module_of(name, checkpointing=False):
    """The method with its network at its real size and random weights."""
    experiment, network, side = STEPS[name]
    path = CONFIGS / "experiment" / "gta5_to_cityscapes" / f"{experiment}.yaml"
    model = resolve(yaml.safe_load(path.read_text()), path.parent, yaml.safe_load)["model"]
    arguments = model["init_args"]
    arguments.pop("init_from", None)
    if network is not None:
        path = CONFIGS / "network" / f"{network}.yaml"
        arguments["network"] = resolve(yaml.safe_load(path.read_text()), path.parent, yaml.safe_load)
    inside = arguments["network"]["init_args"]
    inside |= {"num_classes": 19, "checkpointing": checkpointing}
    for part in (inside, inside.get("backbone")):
        if isinstance(part, dict):
            holder = part.get("init_args", part)
            holder.update({key: off for key, off in (("pretrained", False), ("weights", None)) if key in holder})
    arguments["label_space"] = "cityscapes"
    parser = LightningArgumentParser()
    parser.add_subclass_arguments(UDAModule, "model")
    module = parser.instantiate_classes(parser.parse_object({"model": model})).model
    module.log_step = lambda values: None
    if hasattr(module, "use_thresholds"):
        module.use_thresholds(torch.zeros(19))
    return module, side


def batch_of(count, side, device):
    """Random images of every stream, with labels in squares."""

    def images(*shape):
        image = torch.randint(0, 256, (*shape, 3, side, side), dtype=torch.uint8)
        labels = torch.randint(0, 19, (*shape, side // 32, side // 32), dtype=torch.uint8)
        mask = labels.repeat_interleave(32, -1).repeat_interleave(32, -2)
        return {"image": image.to(device), "mask": mask.to(device)}

    return {
        "source": images(count),
        "target": {"image": images(count)["image"]},
        "template": images(count),
        "tail": images(count, 2),
        "union": {**images(count), "is_target": torch.arange(count, device=device) % 2},
    }


class Run:
    """Training steps of a method on a device."""

    def __init__(self, name, device, options):
        torch.manual_seed(0)
        module, side = module_of(name, options.checkpointing)
        module.backward_per_view = options.per_view
        module.trainer = Trainer(accelerator=device, devices=1, barebones=True)
        self.device, self.module = device, module.to(device)
        self.networks = [module.student, *([module.teacher] if hasattr(module, "teacher") else [])]
        groups = [*module.student.parameter_groups(), *module.student.attached_groups()]
        self.optimizer = module.optimizer(groups)
        module.trainer.strategy.connect(module)
        module.trainer.optimizers = [self.optimizer]
        self.ema = EMATeacher() if len(self.networks) > 1 else None
        self.batch, self.number, self.precision = batch_of(options.images, side, device), 0, nullcontext

    def use(self, recipe):
        """Follows a recipe from now on; compiled networks stay so."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe != "fp32"
        torch.backends.cudnn.benchmark = "benchmark" in recipe
        bf16 = partial(torch.autocast, self.device, torch.bfloat16)
        self.precision = bf16 if recipe.startswith("bf16") else nullcontext
        for network in self.networks:
            network.to(memory_format=torch.channels_last if "channels_last" in recipe else torch.contiguous_format)
            if "compile" in recipe:
                network.backbone.compile()

    def step(self):
        """One training step."""
        with self.precision():
            loss = self.module.training_step(self.batch, self.number)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(*self.networks)
        self.number += 1

    def seconds(self, function, count):
        """Median wall time of calls; CPU time on a CPU, where each call is said."""
        times, clock = [], time.process_time if self.device == "cpu" else time.perf_counter
        for number in range(count):
            start = clock()
            function()
            if self.device == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - start)
            if self.device == "cpu":
                said = f"{function.__name__} {number}: {times[-1]:.1f} s, {resident('VmHWM') / 1000:.1f} GB so far"
                print(said, file=sys.stderr, flush=True)
        return statistics.median(times)

    def syncs(self):
        """How often four steps waited for the GPU, per step."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(4):
                self.step()
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(each.message) for each in caught) / 4

    def passes(self):
        """The passes of a step through the networks, as calls that repeat them by themselves."""
        found, depth = [], [0]

        def recorded(network, way):
            call = getattr(network, way)

            def record(image, *rest):
                if not depth[0]:
                    found.append((call, image.shape, image.dtype, rest, torch.is_grad_enabled(), network.training))
                depth[0] += 1
                try:
                    return call(image, *rest)
                finally:
                    depth[0] -= 1

            return record

        for network in self.networks:
            for way in PASSES:
                setattr(network, way, recorded(network, way))
        self.step()
        for network in self.networks:
            for way in PASSES:
                delattr(network, way)
        return [self._repeated(*each) for each in found]

    def _repeated(self, call, shape, dtype, rest, grad, training):
        image = torch.rand(shape, device=self.device).to(dtype)
        network, rest = call.__self__, copy.copy(rest)

        def repeat():
            network.train(training)
            with torch.set_grad_enabled(grad), self.precision():
                made = call(image, *rest)
            if grad:
                logits = [each.logits for each in made.classifiers] if hasattr(made, "classifiers") else [made[-1]]
                sum(each.float().mean() for each in logits).backward()

        return repeat


def measured(run, recipe, steps, share):
    """Milliseconds of a step, share of the network, peak in GB and syncs by a recipe."""
    run.use(recipe)
    on_cpu = run.device == "cpu"
    if not on_cpu:
        for _ in range(WARM_UP):
            run.step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = run.seconds(run.step, steps)
    peak = resident("VmHWM") / 1000 if on_cpu else torch.cuda.max_memory_allocated() / 1e9
    syncs = None if on_cpu else run.syncs()
    alone = sum(run.seconds(repeat, 1 if on_cpu else 4) for repeat in run.passes()) / seconds if share else None
    return [1000 * seconds, alone, peak, syncs]


def measured_apart(name, options):
    """The same on the CPU, by a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--device",
        "cpu",
        "--one",
        "--methods",
        name,
        "--steps",
        str(options.steps or 2),
        "--images",
        str(options.images),
    ]
    command += ["--checkpointing"] * options.checkpointing + ["--per_view"] * options.per_view
    command += ["--share"] * options.share
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(name, options):
    """Cells of the table's rows of a method, a row for each recipe; one that doesn't run is said and left out."""
    if options.device == "cpu":
        yield cells_of(name, "fp32", None, *measured_apart(name, options))
        return
    run, first = Run(name, "cuda", options), None
    for recipe in options.recipes:
        try:
            figures = measured(run, recipe, options.steps or 10, options.share)
        except Exception as error:
            print(f"{name}, {recipe}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            continue
        first = first or figures[0]
        yield cells_of(name, recipe, first, *figures)
    del run
    torch.compiler.reset()
    torch.cuda.empty_cache()


def cells_of(name, recipe, first, ms, share, peak, syncs):
    """Texts of a row."""
    ratio, alone = "" if first is None else f"{first / ms:.2f}x", "" if share is None else f"{100 * share:.0f} %"
    waits = "" if syncs is None else f"{syncs:g}"
    return [name, str(STEPS[name][2]), recipe, f"{ms:.1f}", ratio, alone, f"{peak:.1f}", waits]


def main():
    """Prints one row for each method and recipe, and writes them to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["fp32", "bf16+benchmark"])
    parser.add_argument("--images", type=int, default=2, help="images of each domain in a step")
    parser.add_argument("--steps", type=int, help="steps that are timed; 2 on a CPU, 10 on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--checkpointing", action="store_true", help="blocks of the backbone are computed again")
    parser.add_argument("--per_view", action="store_true", help="model.backward_per_view")
    parser.add_argument("--share", action="store_true", help="measure the networks alone too")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after this time")
    parser.add_argument("--output", type=Path, help="CSV file that rows are appended to as they are measured")
    parser.add_argument("--one", action="store_true", help="measure the one method given in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.one:
        run = Run(options.methods[0], "cpu", options)
        print(json.dumps(measured(run, "fp32", options.steps, options.share)))
        return
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread"
    said = ", checkpointing" * options.checkpointing + ", backward per view" * options.per_view
    table = Table(title=f"Steps of {options.images} images of each domain, {where}, torch {torch.__version__}{said}")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("method", "recipe") else "right")
    start = time.monotonic()
    for name in options.methods:
        if time.monotonic() - start > options.seconds:
            break
        for cells in rows_of(name, options):
            table.add_row(*cells)
            print(*cells, sep=", ", file=sys.stderr, flush=True)
            if options.output:
                new = not options.output.exists()
                with options.output.open("a", newline="") as file:
                    csv.writer(file).writerows([COLUMNS] * new + [cells])
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
