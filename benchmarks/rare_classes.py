"""What rare class sampling draws: `python benchmarks/rare_classes.py`.

Draws samples of MiniCity's source images as DAFormer's configs do, and as many shuffled ones. For each class it prints
its share of the labelled pixels, its probability by DAFormer's formula, softmax((1 - f) / T), the share of samples that
were drawn for it, with the difference in standard deviations of that number of draws, and the share of crops that show
the class, by rare class sampling and shuffled.
"""

import argparse

import numpy as np
from rich.console import Console

from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.sampling import RareClass, Shuffled
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.datasets import MiniCity
from lightning_uda.tables import Row, console_table


def stream_of(sampling, images):
    """The source stream of MiniCity with crops of half its size."""
    source = MiniCity(style="source", split="train", length=images, size=(96, 192))
    transform = TrainTransform(crop=(96, 96))
    data = UDADataModule("cityscapes", source=source, source_transform=transform)
    statistics = data.statistics("source")
    return sampling.stream(data.origin("source", "source"), lambda: statistics), statistics


def shown(stream, samples):
    """Share of samples that show each class."""
    masks = (stream.sample(position)["mask"] for position in range(samples))
    return np.mean([np.bincount(mask.ravel(), minlength=256)[:19] > 0 for mask in masks], axis=0)


def main():
    """Prints one row for each class."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--temperature", type=float, default=0.01)
    options = parser.parse_args()
    rare, statistics = stream_of(RareClass(options.temperature, min_pixels=27), options.images)
    shuffled, _ = stream_of(Shuffled(), options.images)
    drawn = np.bincount([rare.draw(position)[0] for position in range(options.samples)], minlength=19) / options.samples
    by_rare, by_chance = shown(rare, options.samples), shown(shuffled, options.samples)
    spread = np.sqrt(rare.probabilities * (1 - rare.probabilities) / options.samples)
    rows = [
        Row(name, [f"{100 * x:.1f}" for x in figures] + [f"{deviation:+.1f}"])
        for name, *figures, deviation in zip(
            statistics.classes,
            statistics.pixel_frequency,
            rare.probabilities,
            drawn,
            by_rare,
            by_chance,
            (drawn - rare.probabilities) / np.maximum(spread, 1e-9),
            strict=True,
        )
    ]
    columns = ["class", "pixels, %", "formula, %", "drawn, %", "crops, %", "shuffled, %", "deviations"]
    Console(width=100).print(console_table(f"{options.samples} samples, T = {options.temperature:g}", columns, rows))


if __name__ == "__main__":
    main()
