"""DACS on the demo's network and data against the bare network passes it needs.

A DACS step needs two forward and backward passes of the student and a forward pass of the teacher. This script times
those alone, whole training steps by the Trainer on a batch that is at hand (upsampling, losses, mixing, augmentation,
optimiser, teacher update, logging), and the same with scenes that two workers render meanwhile, in turns.

Run as `python benchmarks/dacs_step.py`.
"""

import statistics
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

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


def trained_seconds(module, **data):
    """Whole steps of a short run on data that the trainer takes by these names."""
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
    trainer.fit(module, **data)
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
    at_hand = DataLoader([batch] * (STEPS + WARM_UP), batch_size=None)
    seconds = {"bare passes": [], "DACS, batch at hand": [], "DACS": []}
    for _ in range(ROUNDS):
        seconds["bare passes"] += [bare_seconds(module, batch) for _ in range(STEPS)]
        seconds["DACS, batch at hand"] += trained_seconds(module, train_dataloaders=at_hand)
        seconds["DACS"] += trained_seconds(module, datamodule=data)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        over = 100 * (median / medians["bare passes"] - 1)
        print(f"{name:<20} {1000 * median:5.0f} ms {1 / median:5.2f} steps/s {over:+4.0f} %")
    print(f"{torch.get_num_threads()} threads, batch of {len(batch['source']['image'])}")


if __name__ == "__main__":
    main()
