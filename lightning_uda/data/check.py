"""Checks of datasets: a full scan, and the short check before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from lightning_uda.data.dataset import DatasetError, Problem, SegmentationDataset
from lightning_uda.data.decoding import file_problem, size_mismatch, unlisted_ids
from lightning_uda.data.listing import some
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.label_spaces import IGNORE_INDEX, LabelSpace

_LISTED_BEFORE_TRAINING = 10
_NEEDS_RESIZE = "this dataset is known for it: set `resize` in the transform, which brings both to one size."

Size = tuple[int, int]
Counts = npt.NDArray[np.int64]


@dataclass
class ScanReport:
    """What a scan of a dataset found.

    Attributes:
        has_labels: Whether labels were read.
        images: Images in the set.
        readable_images: Images that could be decoded.
        readable_labels: Label maps that could be decoded.
        sizes: Number of decoded images of each (height, width).
        mean_rgb: Mean of the images' mean colours, (3,), 0-255.
        class_pixels: (C,), pixels of each class of the label space.
        class_images: (C,), label maps that hold each class.
        void_pixels: Labelled pixels that are void in the label space.
        problems: Everything that has to be mended.
        warnings: What may be meant so: sound label maps without a labelled pixel, class names outside the label space,
            label maps of which much is lost as void, pairs of different size in a dataset known for them, ids unknown
            to a dataset that takes such for void, and the dataset's own remarks.
    """

    has_labels: bool
    images: int
    readable_images: int
    readable_labels: int
    sizes: Counter[Size]
    mean_rgb: npt.NDArray[np.float64]
    class_pixels: Counts
    class_images: Counts
    void_pixels: int
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    @property
    def class_shares(self) -> npt.NDArray[np.float64]:
        """(C,), share of each class in the non-void pixels, summing to 1 (or all 0 without any)."""
        shares: npt.NDArray[np.float64] = self.class_pixels / max(1, int(self.class_pixels.sum()))
        return shares


@dataclass
class _Scanned:
    """One image and its label map: size (height, width), mean colour (3,), pixels of each raw id (256,)."""

    label_file: str
    size: Size | None = None
    mean_rgb: npt.NDArray[np.float64] | None = None
    raw_counts: Counts | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def scan(
    dataset: SegmentationDataset, label_space: LabelSpace, workers: int | None = None, progress: bool = True
) -> ScanReport:
    """Decodes every image and label map of a dataset and collects statistics and all problems.

    Args:
        dataset: Any dataset.
        label_space: The classes to count.
        workers: Threads; `None` takes Python's default for the machine.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The report, problems in the order of the dataset. No broken file stops the scan.
    """
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda index: _scan_pair(dataset, index), range(len(dataset)))
        shown = track(
            results, "Reading", total=len(dataset), console=Console(stderr=True), transient=True, disable=not progress
        )
        scanned = list(shown)
    report = _summarize(dataset, label_space, scanned)
    report.problems = list(dict.fromkeys(report.problems))  # missing labels are one problem of their folder
    known = {problem.where for problem in report.problems}
    report.problems += [problem for problem in dataset.check() if problem.where not in known]
    return report


def require_usable(
    datasets: Mapping[str, SegmentationDataset], batch_size: Mapping[str, int], unlabelled: Collection[str] = ()
) -> None:
    """Runs the checks of all datasets and compares their lengths with the batch sizes, before training.

    Args:
        datasets: Datasets by the names that messages give them.
        batch_size: Images of each dataset in a batch; a dataset not named here needs one image.
        unlabelled: Names of the datasets that are used without their labels, which are then not opened.

    Raises:
        DatasetError: If anything is wrong: one message with the problems of all datasets.
    """
    checked: dict[tuple[int, bool], list[Problem]] = {}
    sections = []
    for name, dataset in datasets.items():
        key = (id(dataset), name not in unlabelled)
        if key not in checked:
            checked[key] = dataset.check(labels=key[1])
        lines = [*_length_problem(dataset, batch_size.get(name, 1)), *_first_lines(checked[key])]
        if lines:
            sections.append("\n".join([f"data.{name} ({counted(len(dataset), 'image')}):", *lines]))
    if sections:
        raise DatasetError("\n".join(["The data can't be used as configured.", *sections]))


def absent_classes(name: str, report: ScanReport, label_space: LabelSpace) -> list[Problem]:
    """Says which classes have no pixel in a set that is scored.

    Args:
        name: Of the set, such as "val".
        report: Its scan.
        label_space: The label space of that scan.
    """
    absent = [what for what, images in zip(label_space.classes, report.class_images, strict=True) if not images]
    if not report.readable_labels or not absent:
        return []
    what = (
        f"no pixel is of {', '.join(absent)}: if predicted, such a class has an IoU of 0, and if not, it counts in no "
        "mean"
    )
    return [Problem(f"data.{name}", what)]


def padded_crops(name: str, report: ScanReport, transform: TrainTransform) -> list[Problem]:
    """Says that images are smaller than the crops that are cut from them.

    Args:
        name: Of the training set, such as "source".
        report: Its scan.
        transform: What crops its images.
    """
    crop = transform.crop
    if crop is None or transform.resize is not None:
        return []
    smaller = {size: count for size, count in report.sizes.items() if size[0] < crop[0] or size[1] < crop[1]}
    if not smaller:
        return []
    height, width = min(smaller)
    what = (
        f"the crop of {crop[0]} x {crop[1]} (height x width) doesn't fit into {sum(smaller.values())} of "
        f"{counted(report.readable_images, 'image')}, such as one of {height} x {width}, and is padded. Lower `crop`, "
        "or set `resize`."
    )
    return [Problem(f"data.{name}", what)]


def counted(number: int, noun: str) -> str:
    """A number of things in words: "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _scan_pair(dataset: SegmentationDataset, index: int) -> _Scanned:
    found = _Scanned(dataset.label_file(index) if dataset.has_labels else "")
    try:
        image = dataset.load_image(index)
        found.size = (image.shape[0], image.shape[1])
        found.mean_rgb = np.asarray(cv2.mean(np.ascontiguousarray(image))[:3])
    except Exception as error:  # whatever a reader raises is a finding
        found.problems.append(file_problem(dataset.image_file(index), error))
    if dataset.has_labels:
        _scan_label(dataset, index, found)
    return found


def _scan_label(dataset: SegmentationDataset, index: int, found: _Scanned) -> None:
    try:
        label = dataset.load_label(index)
    except Exception as error:  # whatever a reader raises is a finding
        found.problems.append(file_problem(found.label_file, error))
        return
    found.raw_counts = np.bincount(label.ravel(), minlength=256)
    if dataset.sizes_may_differ and (mismatch := size_mismatch(label.shape, found.size, _NEEDS_RESIZE)):
        found.warnings.append(Problem(found.label_file, mismatch))
    elif mismatch := size_mismatch(label.shape, found.size):
        found.problems.append(Problem(found.label_file, mismatch))
    if dataset.strict_ids and (unlisted := unlisted_ids(found.raw_counts, dataset.class_ids)):
        found.problems.append(Problem(found.label_file, unlisted))
    elif unknown := _unknown_ids(found.raw_counts, dataset.class_ids):
        found.warnings.append(Problem(found.label_file, unknown))


def _unknown_ids(counts: Counts, class_ids: Mapping[int, str | None]) -> str | None:
    unknown = [int(i) for i in np.flatnonzero(counts) if i not in class_ids and i != IGNORE_INDEX]
    if not unknown:
        return None
    pixels = ", ".join(f"{i}: {counts[i]}" for i in unknown)
    return f"found ids {unknown} (pixels: {pixels}) that this dataset isn't known to hold; they count as void"


def _summarize(dataset: SegmentationDataset, label_space: LabelSpace, scanned: list[_Scanned]) -> ScanReport:
    table = label_space.lookup_table(dataset.class_ids)
    report = ScanReport(
        has_labels=dataset.has_labels,
        images=len(dataset),
        readable_images=sum(item.size is not None for item in scanned),
        readable_labels=sum(item.raw_counts is not None for item in scanned),
        sizes=Counter(item.size for item in scanned if item.size is not None),
        mean_rgb=_mean([item.mean_rgb for item in scanned if item.mean_rgb is not None]),
        class_pixels=np.zeros(label_space.num_classes, np.int64),
        class_images=np.zeros(label_space.num_classes, np.int64),
        void_pixels=0,
        warnings=[*dataset.remarks(), *_foreign_names(dataset, label_space)],
    )
    for item in scanned:
        report.problems += item.problems
        report.warnings += item.warnings
        if item.raw_counts is not None:
            _count_classes(report, item, table)
    raw = sum((item.raw_counts for item in scanned if item.raw_counts is not None), np.zeros(256, np.int64))
    report.warnings += suspicious_masks(dataset, label_space, raw)
    return report


def suspicious_masks(dataset: SegmentationDataset, label_space: LabelSpace, raw: Counts) -> list[Problem]:
    """Label maps that are read without error, though what they show may be lost as void.

    Args:
        dataset: Whose they are.
        label_space: The classes that are trained.
        raw: (256,), pixels of each raw id in all label maps.
    """
    if np.flatnonzero(raw).tolist() == [0, 255] and dataset.class_ids.get(255) is None:
        what = (
            "the label maps hold two values, 0 and 255, and 255 counts as void, so that one class is all there is. If "
            'they are masks of an object, list 255 as a class: `class_map: {0: "background", 255: "object"}` and '
            "`ignore_ids: []`; if they are drawn of polygons, name the class of the rest: `unlabelled: background`."
        )
        return [Problem("label maps", what)]
    counts = np.bincount(label_space.lookup_table(dataset.class_ids), weights=raw, minlength=256).astype(np.int64)
    absent = [name for name, pixels in zip(label_space.classes, counts, strict=False) if not pixels]
    pixels, void = int(raw.sum()), int(counts[IGNORE_INDEX])
    if not absent or not pixels or void < pixels / 2:
        return []
    ids = [int(raw_id) for raw_id in np.argsort(-raw) if raw[raw_id] and _is_void(dataset, label_space, int(raw_id))]
    what = (
        f"{100 * void / pixels:.0f} % of the pixels are void (ids {some([str(i) for i in ids])}), and no "
        f"pixel is of {some(absent)}. Does the class map take a class for void?"
    )
    return [Problem("label maps", what)]


def _is_void(dataset: SegmentationDataset, label_space: LabelSpace, raw_id: int) -> bool:
    return dataset.class_ids.get(raw_id) not in label_space.classes


def _mean(colors: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return np.mean(colors, axis=0) if colors else np.zeros(3)


def _count_classes(report: ScanReport, item: _Scanned, table: npt.NDArray[np.uint8]) -> None:
    counts = np.bincount(table, weights=item.raw_counts, minlength=256).astype(np.int64)
    classes = counts[: len(report.class_pixels)]
    report.class_pixels += classes
    report.class_images += classes > 0
    report.void_pixels += int(counts[IGNORE_INDEX])
    if not classes.any() and not any(problem.where == item.label_file for problem in item.problems):
        what = "no pixel has a class of the label space; the image teaches nothing"
        report.warnings.append(Problem(item.label_file, what))


def _foreign_names(dataset: SegmentationDataset, label_space: LabelSpace) -> list[Problem]:
    names = {name for name in dataset.class_ids.values() if name is not None}
    if not dataset.has_labels or not (foreign := sorted(names - set(label_space.classes))):
        return []
    what = f"names {foreign} aren't in the label space {label_space.name!r}: their pixels count as void"
    return [Problem("class map", what)]


def _length_problem(dataset: SegmentationDataset, batch_size: int) -> list[str]:
    if len(dataset) >= batch_size:
        return []
    images = counted(len(dataset), "image")
    return [f"  - found {images}, expected at least one batch of {batch_size}. Add images or lower `batch_size`."]


def _first_lines(problems: list[Problem]) -> list[str]:
    lines = [f"  - {problem.where}: {problem.what}" for problem in problems[:_LISTED_BEFORE_TRAINING]]
    if (more := len(problems) - _LISTED_BEFORE_TRAINING) > 0:
        lines.append(f"  and {more} more; run `lightning-uda data check --config ...` for all.")
    return lines
