"""How many MiniCity images one core draws per second: `python benchmarks/minicity_speed.py --size 128 256`."""

import argparse
import time

import cv2

from lightning_uda.datasets.minicity import MiniCity


def images_per_second(style, size, count):
    """Draws `count` images with their labels, after a short warm-up."""
    dataset = MiniCity("train", style, length=count + 10, size=size)
    for index in range(10):
        dataset.load_image(index)
    start = time.perf_counter()
    for index in range(10, count + 10):
        dataset.load_image(index)
        dataset.load_label(index)
    return count / (time.perf_counter() - start)


def main():
    """Prints one line per style."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--count", type=int, default=300)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    for style in ("source", "target"):
        speed = images_per_second(style, tuple(options.size), options.count)
        print(f"{style:6s} {options.size[0]}x{options.size[1]}: {speed:.0f} images/s (image and label, one core)")


if __name__ == "__main__":
    main()
