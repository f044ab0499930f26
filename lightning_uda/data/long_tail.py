"""Rare classes of the source set: which they are, and the `tail` stream of crops that show them (DSP)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import SegmentationDataset
from lightning_uda.data.statistics import ClassStatistics
from lightning_uda.data.streams import LabelReader, Sample, collate
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.resize import resize_label

UInt8 = npt.NDArray[np.uint8]


def long_tail_classes(statistics: ClassStatistics, num_classes: int, names: Sequence[str] | None = None) -> list[int]:
    """The long-tail set of DSP: train ids of the classes that the fewest images hold (Eq. 1), or of those named.

    Args:
        statistics: Counts of the source set.
        num_classes: K, how many are chosen; not used with `names`.
        names: Class names to take instead.

    Returns:
        The rarest first, or in the order of `names`.

    Raises:
        ValueError: If fewer than `num_classes` classes occur, or if a name is unknown or in no image.
    """
    images = statistics.images
    if names is None:
        if num_classes > (held := int((images > 0).sum())):
            raise ValueError(
                f"Long-tail classes, num_classes: found {num_classes}, but the source labels hold {held} of the "
                f"{len(images)} classes; expected a number up to {held}. Lower it (model.long_tail_classes of DSP, or "
                "LongTailStatistics.num_classes), or mend the class map of data.source."
            )
        return statistics.least_frequent(num_classes)
    if unknown := sorted(set(names) - set(statistics.classes)):
        raise ValueError(
            f"LongTailStatistics.classes: found {unknown}, expected names of the label space: "
            f"{list(statistics.classes)}. Mend the names."
        )
    chosen = [statistics.classes.index(name) for name in dict.fromkeys(names)]
    if absent := [statistics.classes[c] for c in chosen if images[c] == 0]:
        raise ValueError(
            f"LongTailStatistics.classes: none of the {statistics.num_images} source label maps holds {absent}; "
            "expected classes with at least one image to draw. Leave them out, or mend the class map of data.source."
        )
    return chosen


class TailStream:
    """Endless stream of crops with k long-tail classes in sight, one image for each: long-tail sampling of DSP.

    The classes are drawn once per iteration, so all images of a step, on all ranks, get the same ones. For each class
    an image that holds it is drawn, resized and cropped, until the crop shows at least one of its pixels. Labels are
    looked at first: an image is decoded for the successful crop only.

    Args:
        dataset: Where images come from.
        label_reader: Gives their label maps.
        transform: Geometry.
        seed: Part of the random key.
        images: Train id of each long-tail class to the indices of the images that hold it, at least one.
        classes_per_step: k, classes drawn in an iteration; at most the number of long-tail classes.
        samples_per_step: Samples that all ranks draw in an iteration: batch size x world size.
        max_tries: Images and crops tried for a class before it is left out of a sample.
        all_chosen_classes: Whether the pixels of all k classes are kept in each of the images (Algorithm 1 of the
            paper to the letter), not only those of the class that it was drawn for (the published program).
    """

    end: ClassVar[int | None] = None

    def __init__(
        self,
        dataset: SegmentationDataset,
        label_reader: LabelReader,
        transform: TrainTransform,
        seed: int,
        images: Mapping[int, npt.NDArray[np.int64]],
        classes_per_step: int,
        samples_per_step: int,
        max_tries: int = 100,
        all_chosen_classes: bool = False,
    ) -> None:
        self.dataset = dataset
        self.label_reader = label_reader
        self.transform = transform
        self.key = (seed, zlib.crc32(b"tail"))
        self.images = images
        self.classes_per_step = classes_per_step
        self.samples_per_step = samples_per_step
        self.max_tries = max_tries
        self.all_chosen_classes = all_chosen_classes

    def classes(self, position: int) -> list[int]:
        """The k train ids of the iteration that a position belongs to, in the order in which they are pasted."""
        rng = np.random.default_rng((*self.key, 0, position // self.samples_per_step))
        return [int(c) for c in rng.choice(sorted(self.images), self.classes_per_step, replace=False)]

    def sample(self, position: int) -> Sample:
        """The sample at a position.

        Returns:
            "image", uint8 (k, 3, H, W), and "mask", uint8 (k, H, W): train ids where pixels are to be pasted, 255
            elsewhere. A class that no try showed has a black image and a mask of 255.

        Raises:
            DatasetError: If the crops of the classes differ in size.
        """
        classes = self.classes(position)
        patches = [self._patch(c, classes if self.all_chosen_classes else [c], position) for c in classes]
        return {name: tensor.numpy() for name, tensor in collate("tail", patches).items()}

    def _patch(self, wanted: int, pasted: list[int], position: int) -> Sample:
        rng = np.random.default_rng((*self.key, 1, position, wanted))
        for _ in range(self.max_tries):
            index, transform_seed = int(rng.choice(self.images[wanted])), int(rng.integers(2**32))
            label = self._cropped_label(index, transform_seed)
            if (label == wanted).any():
                image, _ = self.transform(self.dataset.load_image(index), None, transform_seed)
                kept = np.full(256, IGNORE_INDEX, np.uint8)
                kept[pasted] = pasted
                return {"image": cast(UInt8, np.stack(cv2.split(image))), "mask": cast(UInt8, cv2.LUT(label, kept))}
        return {"image": np.zeros((3, *label.shape), np.uint8), "mask": np.full_like(label, IGNORE_INDEX)}

    def _cropped_label(self, index: int, transform_seed: int) -> UInt8:
        """The label map as `transform` crops it beside the image; it takes the image's place, which stays unread."""
        label = self.label_reader(index)
        if self.transform.resize is not None:
            label = resize_label(label, self.transform.resize)
        return cast(UInt8, self.transform(label, label, transform_seed)[1])
