"""Images per second of one loader worker: the naive path over Pillow, ours, and ours over the two kinds of cache.

Run as `python benchmarks/loading.py`. All forms take the same items in turn, in one process and one thread; times are
CPU times of that thread, medians over all items. Two settings: GTA5's (1914 x 1052 to 1280 x 720, bicubic, with
labels) and Cityscapes' (2048 x 1024 to 1024 x 512, bilinear), both with random crops of 512 x 512. The published
program also decodes, remaps and resizes the Cityscapes labels that training doesn't use: the third block, for which
the bars were set; the second block compares the images alone.
Images are drawn by MiniCity, with noise that brings the PNG files to about 2.4 MB, as the real ones have.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from lightning_uda.data.cache import CachedDataset, build_caches
from lightning_uda.data.streams import LabelReader, Stream
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.datasets.folder import FolderDataset
from lightning_uda.datasets.minicity import MiniCity
from lightning_uda.label_spaces import CITYSCAPES, CITYSCAPES_IDS
from lightning_uda.resize import Interpolation, resize_image, resize_label

CROP = 512
MEAN_BGR = np.array((104.00698793, 116.66876762, 122.67891434), np.float32)
RAW_IDS = {train_id: raw_id for train_id, raw_id in enumerate(CITYSCAPES_IDS)}
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Setting:
    """One of the two training sets; sizes are (height, width)."""

    title: str
    file_size: tuple[int, int]
    size: tuple[int, int]
    interpolation: Interpolation
    labels: bool
    naive_labels: bool
    uncached_bar: float


SETTINGS = (
    Setting("GTA5, image and label", (1052, 1914), (720, 1280), "bicubic", True, True, 1.4),
    Setting("Cityscapes, image only", (1024, 2048), (512, 1024), "bilinear", False, False, 1.8),
    Setting("Cityscapes, naive path with its unused label", (1024, 2048), (512, 1024), "bilinear", False, True, 1.8),
)


def naive_item(image_path, label_path, setting, rng):
    """The published loaders, written down literally: float BGR image minus mean, (3, 512, 512), and label map."""
    width_height = (setting.size[1], setting.size[0])
    image = Image.open(image_path).convert("RGB").resize(width_height, RESAMPLING[setting.interpolation])
    top, left = (int(rng.integers(0, extent - CROP + 1)) for extent in setting.size)
    image = np.asarray(image, np.float32)[top : top + CROP, left : left + CROP]
    image = (image[:, :, ::-1] - MEAN_BGR).transpose(2, 0, 1).copy()
    if not setting.naive_labels:
        return image, None
    label = Image.open(label_path)
    if not setting.labels:  # the published Cityscapes loader remaps before it resizes
        label = Image.fromarray(naive_remap(np.asarray(label)))
    label = np.asarray(label.resize(width_height, Image.Resampling.NEAREST))[top : top + CROP, left : left + CROP]
    return image, naive_remap(label).astype(np.float32) if setting.labels else label.astype(np.float32)


def naive_remap(label):
    """Raw ids to train ids, one class after the other."""
    remapped = np.full(label.shape, 255, np.uint8)
    for train_id, raw_id in RAW_IDS.items():
        remapped[label == raw_id] = train_id
    return remapped


def make_files(root, size, count):
    """Writes `count` pairs: noisy images, and palette labels of Cityscapes ids."""
    city = MiniCity("train", "target", length=count, size=size)
    rng = np.random.default_rng(0)
    to_raw = np.array([RAW_IDS.get(i, 0) for i in range(256)], np.uint8)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        image = city.load_image(index) + rng.normal(0, 1, (*size, 3)).round()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{index}.png")
        label = Image.fromarray(to_raw[city.load_label(index)])
        label.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        label.save(root / "labels" / f"{index}.png")


def stream(dataset, setting):
    """The project's own path from a dataset to a sample."""
    transform = TrainTransform(setting.size, setting.interpolation, (CROP, CROP))
    reader = LabelReader(dataset, CITYSCAPES.lookup_table(dataset.class_ids)) if setting.labels else None
    return Stream("source", dataset, transform, 0, reader)


def forms(setting, root):
    """What is compared: name to a function that loads the item at a position."""
    dataset = FolderDataset(str(root), class_map={**dict.fromkeys(range(34)), **CITYSCAPES_IDS})
    caches = [
        CachedDataset(dataset, root / "cache", setting.size, setting.interpolation, setting.labels, cache_format)
        for cache_format in ("png", "memmap")
    ]
    build_caches(caches, workers=0, progress=False)
    uncached, png, memmap = (stream(each, setting) for each in (dataset, *caches))
    rng = np.random.default_rng(0)

    def naive(position):
        index = uncached.index(position)
        return naive_item(dataset.image_path(index), dataset.label_path(index), setting, rng)

    require_agreement(dataset, setting)
    require_equal(uncached, png, memmap)
    return {"naive": naive, "uncached": uncached.sample, "png": png.sample, "memmap": memmap.sample}


def require_agreement(dataset, setting):
    """Our reading and resizing has to be Pillow's: images within two levels, labels exactly."""
    width_height = (setting.size[1], setting.size[0])
    image = Image.open(dataset.image_path(0)).resize(width_height, RESAMPLING[setting.interpolation])
    found = resize_image(dataset.load_image(0), setting.size, setting.interpolation)
    assert np.abs(found.astype(int) - np.asarray(image)).max() <= 2, "images differ by more than two levels"
    label = Image.open(dataset.label_path(0)).resize(width_height, Image.Resampling.NEAREST)
    assert np.array_equal(resize_label(dataset.load_label(0), setting.size), np.asarray(label)), "labels differ"


def require_equal(uncached, *cached):
    """The caches have to give the very pixels."""
    for position in range(4):
        expected = uncached.sample(position)
        for other in cached:
            found = other.sample(position)
            assert all(np.array_equal(found[key], expected[key]) for key in expected), "a cache changes pixels"


def measure(functions, rounds):
    """Median milliseconds of each form, and its median ratio to the first; interleaved."""
    times = {name: [] for name in functions}
    for position in range(-2, rounds):
        for name, function in functions.items():
            start = time.thread_time()
            function(max(position, 0))
            if position >= 0:
                times[name].append(1000 * (time.thread_time() - start))
    naive = next(iter(times.values()))
    ratios = {
        name: statistics.median(a / b for a, b in zip(naive, column, strict=True)) for name, column in times.items()
    }
    return {name: statistics.median(column) for name, column in times.items()}, ratios


def main():
    """Prints one block per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=6, help="pairs drawn for each setting")
    parser.add_argument("--rounds", type=int, default=30, help="items each form loads")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            root = Path(folder, "x".join(map(str, setting.file_size)))
            if not root.exists():
                make_files(root, setting.file_size, options.images)
            sizes = [path.stat().st_size / 1e6 for path in (root / "images").iterdir()]
            times, ratios = measure(forms(setting, root), options.rounds)
            bars = {"uncached": setting.uncached_bar, "png": 8, "memmap": 8}
            print(f"{setting.title} (PNG files of {statistics.mean(sizes):.1f} MB)")
            for name, ms in times.items():
                bar = f"  bar {bars[name]}x" if name in bars else ""
                print(f"  {name:9s}{ms:7.2f} ms {1000 / ms:7.0f} images/s {ratios[name]:7.2f}x{bar}")


if __name__ == "__main__":
    main()
