"""DACS on the demo's network and data against the bare network passes it needs.

A DACS step needs two forward and backward passes of the student and a forward pass of the teacher. This script times
those alone, and whole training steps by the Trainer with everything in them (rendering and loading in two workers,
upsampling, losses, mixing, augmentation, optimiser, teacher update, logging), in turns in one process.

Run as `python benchmarks/dacs_step.py`.
"""

import statistics
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from lightning_uda.cli import UDACLI, UDADataModule, UDAModule
from lightning_uda.step import to_float

CONFIG = Path(__file__).parents[1] / "configs" / "demo" / "dacs.yaml"
ROUNDS = 4
STEPS = 30
WARM_UP = 8


class StepTimes(Callback):
    """Seconds from the end of each step to the end of the next."""

    def __init__(self):
        self.ends = []

    def on_train_batch_end(self, *_):
        """Takes the time."""
        self.ends.append(time.perf_counter())

    @property
    def seconds(self):
        """Times of the steps after the warm-up."""
        pairs = zip(self.ends[WARM_UP:], self.ends[WARM_UP + 1 :], strict=False)
        return [second - first for first, second in pairs]


def bare_seconds(module, batch):
    """The passes of one step, nothing else."""
    source, target = (to_float(batch[name]["image"]) for name in ("source", "target"))
    start = time.perf_counter()
    for image in (source, target):
        module.student(image).mean().backward()
    with torch.no_grad():
        module.teacher(target)
    module.student.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def trained_seconds(module, data):
    """Whole steps of a short run."""
    times = StepTimes()
    trainer = Trainer(
        max_steps=STEPS + WARM_UP,
        limit_val_batches=0,
        callbacks=[times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return times.seconds


def main() -> None:
    """Prints steps per second of both and the overhead."""
    cli = UDACLI(
        UDAModule,
        UDADataModule,
        save_config_callback=None,
        seed_everything_default=0,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        run=False,
        args=["--config", str(CONFIG)],
    )
    module, data = cli.model.train(), cli.datamodule
    batch = next(iter(data.train_dataloader()))
    bare, whole = [], []
    for _ in range(ROUNDS):
        bare += [bare_seconds(module, batch) for _ in range(STEPS)]
        whole += trained_seconds(module, data)
    bare_median, whole_median = statistics.median(bare), statistics.median(whole)
    print(
        f"bare passes {1 / bare_median:.2f} steps/s ({1000 * bare_median:.0f} ms), DACS {1 / whole_median:.2f} steps/s "
        f"({1000 * whole_median:.0f} ms): overhead {100 * (whole_median / bare_median - 1):.0f} % "
        f"({torch.get_num_threads()} threads, batch of {len(batch['source']['image'])})"
    )


if __name__ == "__main__":
    main()
