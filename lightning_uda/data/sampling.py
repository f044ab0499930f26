"""Samplings: which image of a dataset a stream shows at a position, and which crop of it.

A sampling is a recipe without state; from an `Origin` it makes a stream whose samples are pure functions of
(seed, stream, position).
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.data.dataset import SegmentationDataset
from lightning_uda.data.margins import Margins
from lightning_uda.data.statistics import ClassStatistics
from lightning_uda.data.streams import LabelReader, Sample, SampleStream, Stream, collate, crop_sample
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.ranges import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, PIXELS, POSITIVE, ranged
from lightning_uda.resize import resize_label

UInt8 = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Origin:
    """What a stream draws from.

    Attributes:
        stream: Name of the stream; part of its random key.
        dataset: Where images come from.
        label_reader: Gives their label maps; `None` for a stream without labels, which are then never opened.
        transform: Geometry.
        seed: Part of the random key.
        samples_per_step: Samples that all ranks together draw in a training step: batch size x world size.
        margins: Of the images of a stream without labels; `None` where there are none.
    """

    stream: str
    dataset: SegmentationDataset
    label_reader: LabelReader | None
    transform: TrainTransform
    seed: int
    samples_per_step: int = 1
    margins: Margins | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Beginning of the random keys of the stream."""
        return self.seed, zlib.crc32(self.stream.encode())


class Sampling(ABC):
    """Base of the samplings with one crop of one image in a sample."""

    @abstractmethod
    def stream(self, origin: Origin, statistics: Callable[[], ClassStatistics]) -> SampleStream:
        """The stream, endless.

        Args:
            origin: What it draws from.
            statistics: Gives the pixels of each class in each image of the dataset, at the size of the label files.
                They are counted when this is called, so a sampling that doesn't need them doesn't call it.

        Raises:
            ValueError: If these data can't be sampled in this way.
        """


class Shuffled(Sampling):
    """Every image once in a pass over the dataset; every pass has an order of its own."""

    def stream(self, origin: Origin, statistics: Callable[[], ClassStatistics]) -> Stream:
        """The stream; statistics aren't used."""
        return Stream(origin.stream, origin.dataset, origin.transform, origin.seed, origin.label_reader, origin.margins)


class WeightedParts(Sampling):
    """Images of several sets by shares of your choice, drawn at random with replacement; for the dataset `Concat`.

    Args:
        weights: Of each set, in the order of the sets; a sample is of a set with the probability of its share in their
            sum.

    Raises:
        ValueError: If a weight is negative or not finite, or their sum is 0.
    """

    @ranged(weights=NOT_NEGATIVE)
    def __init__(self, weights: Sequence[float]) -> None:
        if not sum(weights) > 0:
            raise ValueError(f"WeightedParts.weights: found {list(weights)}, expected one above 0.")
        self.weights = list(weights)

    def stream(self, origin: Origin, statistics: Callable[[], ClassStatistics]) -> WeightedStream:
        """The stream; statistics aren't used.

        Raises:
            ValueError: If there are not as many sets as weights.
        """
        parts = origin.dataset.parts
        if len(parts) != len(self.weights):
            raise ValueError(
                f"WeightedParts: found {len(self.weights)} weights, but data.{origin.stream} is of {len(parts)} sets. "
                f"Give data.{origin.stream}_sampling.weights one for each of the datasets of a Concat."
            )
        return WeightedStream(origin, np.array(self.weights) / sum(self.weights))


class WeightedStream(Stream):
    """Endless stream over the sets of a `Concat`; see `WeightedParts`.

    Args:
        origin: What is drawn from.
        shares: (sets,), of the samples, summing to 1.
    """

    def __init__(self, origin: Origin, shares: npt.NDArray[np.float64]) -> None:
        super().__init__(
            origin.stream, origin.dataset, origin.transform, origin.seed, origin.label_reader, origin.margins
        )
        self.shares = shares

    def index(self, position: int) -> int:
        """Which image of the dataset stands at a position."""
        rng = np.random.default_rng((*self.key, 2, position))
        part = int(rng.choice(len(self.shares), p=self.shares))
        return sum(self.dataset.parts[:part]) + int(rng.integers(self.dataset.parts[part]))


class RareClass(Sampling):
    """Rare class sampling of DAFormer (Hoyer et al., CVPR 2022, section 3.3): crops that show classes drawn by rarity.

    For each sample a class is drawn, rare ones more often; then one of the images with enough pixels of it, all alike;
    then crops, until one shows enough of the class.

    Args:
        temperature: T of the class probabilities, softmax((1 - f) / T) over the shares f of the labelled pixels;
            lower prefers rare classes more, `.inf` draws all classes alike.
        min_pixels: An image is drawn for a class if it has more than this number of its pixels, counted at the size of
            the label file. 3000 suits images of about 2 megapixels.
        min_crop_ratio: A crop shows enough of the class if it has more than `min_pixels` times this of its pixels,
            counted after resizing and cropping. HRDA's is 2, as its images are twice as large.
        max_tries: Crops tried. DAFormer crops once and again up to 10 times. If none will do, the last is kept that
            shows enough of the class; without such a one the last.
        max_share: A crop will do only if no class has this share (0-1) of its labelled pixels or more; above 1 all do.

    Raises:
        ValueError: If a number is out of range.
    """

    @ranged(temperature=POSITIVE, min_pixels=PIXELS, min_crop_ratio=NOT_NEGATIVE, max_tries=COUNT, max_share=POSITIVE)
    def __init__(
        self,
        temperature: float = 0.01,
        min_pixels: int = 3000,
        min_crop_ratio: float = 0.5,
        max_tries: int = 11,
        max_share: float = 0.75,
    ) -> None:
        self.temperature = temperature
        self.min_pixels = min_pixels
        self.min_crop_ratio = min_crop_ratio
        self.max_tries = max_tries
        self.max_share = max_share

    def stream(self, origin: Origin, statistics: Callable[[], ClassStatistics]) -> RareClassStream:
        """The stream over all classes that have a labelled pixel.

        Raises:
            ValueError: If the stream has no labels, or no image has enough pixels of one of the classes.
        """
        if origin.label_reader is None:
            raise ValueError(
                f"RareClass: found the stream {origin.stream!r}, whose labels are never opened; expected a labelled "
                f"one. Set data.{origin.stream}_sampling to Shuffled."
            )
        found = statistics()
        probabilities = rare_class_probabilities(found.pixels, self.temperature)
        images = {c: found.images_with(c, self.min_pixels + 1) for c in np.flatnonzero(found.pixels).tolist()}
        if lacking := [c for c, indices in images.items() if not len(indices)]:
            most = {found.classes[c]: int(found.counts[:, c].max()) for c in lacking}
            raise ValueError(
                f"RareClass draws images with more than min_pixels={self.min_pixels} pixels of a class, but of "
                f"{len(lacking)} classes no image has so many: the most are {most}. Set "
                f"data.{origin.stream}_sampling.min_pixels below {min(most.values())}."
            )
        if not images:
            raise ValueError("RareClass: found no labelled pixel in data.source. Mend its class map or label space.")
        min_pixels = self.min_pixels * self.min_crop_ratio
        return RareClassStream(origin, probabilities, images, min_pixels, self.max_tries, self.max_share)


def rare_class_probabilities(pixels: npt.ArrayLike, temperature: float) -> npt.NDArray[np.float64]:
    """Probability of each class to be drawn: softmax((1 - f) / T) over the classes that occur.

    Args:
        pixels: (C,), labelled pixels of each class; f is its share in their sum.
        temperature: T, above 0; infinity gives all classes that occur the same.

    Returns:
        float64 (C,), summing to 1; 0 for classes without a pixel.
    """
    counts = np.asarray(pixels, np.float64)
    exponents = (1 - counts / max(1.0, counts.sum())) / temperature
    weights = np.where(counts > 0, np.exp(exponents - exponents.max()), 0)
    return np.asarray(weights / max(np.finfo(float).tiny, weights.sum()))


class RareClassStream:
    """Endless stream of crops that show a class drawn for each sample; see `RareClass`.

    Args:
        origin: What is drawn from, with labels.
        probabilities: (C,), of the classes.
        images: Train id of each class that can be drawn to the indices of its images, at least one.
        min_pixels: A crop shows enough of the class if it has more than this number of its pixels.
        max_tries: Crops tried; see `RareClass` for which is kept.
        max_share: A crop will do if no class has this share of its labelled pixels or more.
    """

    end: ClassVar[int | None] = None

    def __init__(
        self,
        origin: Origin,
        probabilities: npt.NDArray[np.float64],
        images: Mapping[int, Indices],
        min_pixels: float,
        max_tries: int,
        max_share: float,
    ) -> None:
        self.origin = origin
        self.probabilities = probabilities
        self.images = images
        self.min_pixels = min_pixels
        self.max_tries = max_tries
        self.max_share = max_share

    def draw(self, position: int) -> tuple[int, int, list[int]]:
        """Train id and image index of a position, and the seeds of its crops, in the order in which they are tried."""
        rng = np.random.default_rng((*self.origin.key, 0, position))
        wanted = int(rng.choice(len(self.probabilities), p=self.probabilities))
        index = int(rng.choice(self.images[wanted]))
        return wanted, index, rng.integers(2**32, size=self.max_tries).tolist()

    def image_name(self, position: int) -> str:
        """Name of the image at a position."""
        return self.origin.dataset.name(self.draw(position)[1])

    def sample(self, position: int) -> Sample:
        """The sample at a position.

        Returns:
            "image", uint8 (3, H, W), and "mask", uint8 (H, W).
        """
        wanted, index, seeds = self.draw(position)
        label = _label(self.origin, index)
        kept = seeds[-1]
        for seed in seeds:
            pixels = np.bincount(_cropped(label, self.origin.transform, seed).ravel(), minlength=256)[:IGNORE_INDEX]
            if pixels[wanted] > self.min_pixels:
                kept = seed
                if pixels.max() < self.max_share * pixels.sum():
                    break
        return crop_sample(self.origin.dataset, index, label, self.origin.transform, kept)


TailClasses = int | Literal["gap"] | Sequence[str]
"""How DSP's long-tail set is chosen; see `long_tail_classes`."""


class LongTail:
    """Long-tail sampling of DSP: samples of k crops, each with another rare class in sight, for the stream `tail`.

    No `Sampling`, as a sample holds k crops instead of one; so it can't be named for other streams.

    Args:
        k: Classes drawn in a training step.
        classes: What they are drawn from, as in `long_tail_classes`.
        max_tries: Images and crops tried for a class before it is left out of a sample.
        all_chosen_classes: Whether the pixels of all k classes are kept in each of the crops (Algorithm 1 of the paper
            to the letter), not only those of the class that it was drawn for (the published program).
    """

    @ranged(k=COUNT_OR_NONE, max_tries=COUNT)
    def __init__(self, k: int, classes: TailClasses, max_tries: int = 100, all_chosen_classes: bool = False) -> None:
        self.k = k
        self.classes = classes
        self.max_tries = max_tries
        self.all_chosen_classes = all_chosen_classes

    def chosen(self, statistics: ClassStatistics) -> list[int]:
        """Train ids of the long-tail set, at least k.

        Raises:
            ValueError: If there are fewer classes than wanted, or a name is unknown or in no image.
        """
        chosen = long_tail_classes(statistics, self.classes)
        if len(chosen) < self.k:
            raise ValueError(
                f"Found {len(chosen)} long-tail classes {[statistics.classes[c] for c in chosen]}, but {self.k} "
                f"different ones are pasted per step (model.long_tail_k). Give at least {self.k} by "
                "model.long_tail_classes (or num_classes or classes of LongTailStatistics), or lower long_tail_k."
            )
        return chosen

    def stream(self, origin: Origin, statistics: Callable[[], ClassStatistics]) -> LongTailStream:
        """The stream over the images that hold the long-tail classes; raises what `chosen` does."""
        found = statistics()
        images = {c: found.images_with(c) for c in self.chosen(found)}
        return LongTailStream(origin, images, self.k, self.max_tries, self.all_chosen_classes)


def long_tail_classes(statistics: ClassStatistics, wanted: TailClasses) -> list[int]:
    """The long-tail set of DSP: train ids of the classes that the fewest images hold (Eq. 1), or of those named.

    Args:
        statistics: Counts of the source set.
        wanted: K, how many are chosen; "gap" for the K, up to half of the classes, behind which the number of images
            rises by the largest factor, so that classes of like frequency stay together; or the names of those to take.

    Returns:
        The rarest first, or in the order of the names.

    Raises:
        ValueError: If fewer than K classes occur, or if a name is unknown or in no image.
    """
    images = statistics.images
    if wanted == "gap":
        rising = np.sort(images[images > 0])
        factors = rising[1:] / rising[:-1]
        wanted = 1 + int(np.argmax(factors[: len(rising) // 2])) if len(rising) > 1 else len(rising)
    if isinstance(wanted, int):
        if wanted > (held := int((images > 0).sum())):
            raise ValueError(
                f"Long-tail classes, num_classes: found {wanted}, but the source labels hold {held} of the "
                f"{len(images)} classes; expected a number up to {held}. Lower it (model.long_tail_classes of DSP, or "
                "LongTailStatistics.num_classes), or mend the class map of data.source."
            )
        return statistics.least_frequent(wanted)
    if unknown := sorted(set(wanted) - set(statistics.classes)):
        raise ValueError(
            f"Long-tail classes: found {unknown}, expected names of the label space: {list(statistics.classes)}. Mend "
            "the names (model.long_tail_classes of DSP, or LongTailStatistics.classes)."
        )
    chosen = [statistics.classes.index(name) for name in dict.fromkeys(wanted)]
    if absent := [statistics.classes[c] for c in chosen if images[c] == 0]:
        raise ValueError(
            f"Long-tail classes: none of the {statistics.num_images} source label maps holds {absent}; expected "
            "classes with at least one image to draw. Leave them out, or mend the class map of data.source."
        )
    return chosen


class LongTailStream:
    """Endless stream of crops with k long-tail classes in sight, one image for each; see `LongTail`.

    The classes are drawn once per step, so all images of a step, on all ranks, get the same ones. For each class
    an image that holds it is drawn, resized and cropped, until the crop shows at least one of its pixels. The label is
    cropped first: an image is decoded for the successful crop only.

    Args:
        origin: What is drawn from, with labels.
        images: Train id of each long-tail class to the indices of the images that hold it, at least one.
        k: Classes drawn in a step; at most the number of long-tail classes.
        max_tries: Images and crops tried for a class before it is left out of a sample.
        all_chosen_classes: As in `LongTail`.
    """

    end: ClassVar[int | None] = None

    def __init__(
        self,
        origin: Origin,
        images: Mapping[int, Indices],
        k: int,
        max_tries: int = 100,
        all_chosen_classes: bool = False,
    ) -> None:
        self.origin = origin
        self.images = images
        self.k = k
        self.max_tries = max_tries
        self.all_chosen_classes = all_chosen_classes

    def classes(self, position: int) -> list[int]:
        """The k train ids of the step that a position belongs to, in the order in which they are pasted."""
        rng = np.random.default_rng((*self.origin.key, 0, position // self.origin.samples_per_step))
        return [int(c) for c in rng.choice(sorted(self.images), self.k, replace=False)]

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
        return {name: tensor.numpy() for name, tensor in collate(self.origin.stream, patches).items()}

    def _patch(self, wanted: int, pasted: list[int], position: int) -> Sample:
        origin, rng = self.origin, np.random.default_rng((*self.origin.key, 1, position, wanted))
        for _ in range(self.max_tries):
            index, seed = int(rng.choice(self.images[wanted])), int(rng.integers(2**32))
            whole = _label(origin, index)
            label = _cropped(whole, origin.transform, seed)
            if (label == wanted).any():
                sample = crop_sample(origin.dataset, index, whole, origin.transform, seed)
                kept = np.full(256, IGNORE_INDEX, np.uint8)
                kept[pasted] = pasted
                return {**sample, "mask": cast(UInt8, cv2.LUT(sample["mask"], kept))}
        return {"image": np.zeros((3, *label.shape), np.uint8), "mask": np.full_like(label, IGNORE_INDEX)}


def _label(origin: Origin, index: int) -> UInt8:
    """Label map `index`, at the size to which the transform resizes."""
    assert origin.label_reader is not None
    label = origin.label_reader(index)
    return label if origin.transform.resize is None else resize_label(label, origin.transform.resize)


def _cropped(label: UInt8, transform: TrainTransform, seed: int) -> UInt8:
    """The label map as the transform crops it beside an image; it takes the image's place, which stays unread."""
    return cast(UInt8, transform(label, label, seed)[1])
