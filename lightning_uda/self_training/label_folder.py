"""Pseudo-labels of a round on disk: one PNG per image, and a record that says that they are complete."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.data.decoding import read_label
from lightning_uda.files import replace_file

RECORD_FILE = "round.json"
"""Name of the record in a folder of labels; written last."""

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LabelFolder:
    """Pseudo-labels of a dataset's images: `<folder>/<name>.png`, train ids, 255 for pixels without a label.

    Attributes:
        folder: The folder.
        dataset: Gives the names.
    """

    folder: Path
    dataset: SegmentationDataset

    def write(self, index: int, label: UInt8) -> None:
        """Writes the label map of image `index`, uint8 (H, W); the file is whole or not there.

        Raises:
            OSError: If it can't be written.
        """
        path = self._path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = cv2.imencode(".png", label)[1].tobytes()
        _replace(path, content)

    def __call__(self, index: int) -> UInt8:
        """Reads the label map of image `index`, uint8 (H, W).

        Raises:
            DatasetError: If the file is missing or damaged.
        """
        return read_label(self._path(index), self.dataset.size_limit)

    def record(self, made_from: str) -> RoundRecord:
        """The record of these labels, which must be whole and those of the dataset.

        Args:
            made_from: What they must have been made from; see `RoundRecord`.

        Raises:
            DatasetError: If they can't be used; the message says why.
        """
        record = RoundRecord.read(self.folder)
        if record is None:
            raise DatasetError(f"{self.folder}: found no {RECORD_FILE} there.")
        if record.target_set != self.dataset.fingerprint(labels=False):
            raise DatasetError(
                f"{self.folder}: these are labels of other images than those of data.target (other names, files or "
                "settings). Give the run the target set that it began with."
            )
        if record.made_from != made_from:
            raise DatasetError(f"{self.folder}: these labels were made from other weights or settings.")
        missing = [path for path in map(self._path, record.images_of(self.dataset)) if not path.is_file()]
        if missing:
            raise DatasetError(f"{self.folder}: {len(missing)} label files are missing, first {missing[0].name}.")
        return record

    def copy_from(self, folder: Path, images: Sequence[int]) -> None:
        """Copies labels and, last, their record from another folder.

        Raises:
            OSError: If one can't be read or written.
        """
        self.clear()
        for index in images:
            path = self._path(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path.relative_to(self.folder), path)
        shutil.copyfile(folder / RECORD_FILE, self.folder / RECORD_FILE)

    def clear(self) -> None:
        """Makes the folder; removes the record of one that is there, so that its labels count as incomplete.

        Raises:
            OSError: If that fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / RECORD_FILE).unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{self.dataset.name(index)}.png"


@dataclass(frozen=True)
class RoundRecord:
    """What is known of a round's labels; counts are pixels of all target images together.

    Attributes:
        round: Number of the round, from 1.
        portion: Portion of the pixels, as text.
        made_from: Key of all that the labels depend on, as `labels_key` gives it.
        target_set: Fingerprint of the target set, as `SegmentationDataset` gives it.
        images: Number of images.
        pixels: Number of pixels.
        classes: The C class names.
        thresholds: exp(-k_c) of each class; `None` for those that get no label.
        predicted: Pixels whose largest score is that of each class.
        labelled: Pixels that each class labels.
        accuracy: Share of right ones in each class's labels, in percent; `None` where nothing is known.
        target_images: Indices of the images, if they are a subset of the target set.
    """

    round: int
    portion: str
    made_from: str
    target_set: str
    images: int
    pixels: int
    classes: list[str]
    thresholds: list[float | None]
    predicted: list[int]
    labelled: list[int]
    accuracy: list[float | None]
    target_images: list[int] | None

    @classmethod
    def read(cls, folder: Path) -> RoundRecord | None:
        """The record of a folder of labels; `None` if there is none, as they aren't complete.

        Raises:
            DatasetError: If it is damaged, or of another version of this program.
        """
        path = folder / RECORD_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found, expected = sorted(content), sorted(field.name for field in fields(cls))
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{path}: damaged, as it can't be read ({error}).") from error
        if found != expected:
            raise DatasetError(f"{path}: found the entries {found}, expected {expected}.")
        return cls(**content)

    def write(self, folder: Path) -> None:
        """Writes the record; the file is whole or not there."""
        _replace(folder / RECORD_FILE, json.dumps(asdict(self), indent=1).encode())

    def threshold_tensor(self) -> Tensor:
        """exp(-k_c), float32 (C,), infinite for classes that get no label."""
        values = [math.inf if value is None else value for value in self.thresholds]
        return torch.tensor(values, dtype=torch.float32)  # whatever the precision of the run

    def images_of(self, dataset: SegmentationDataset) -> Sequence[int]:
        """Indices of the images of the target set that have labels."""
        return range(len(dataset)) if self.target_images is None else self.target_images

    def metrics(self) -> dict[str, float]:
        """What is logged, as `rounds/<name>`; shares in percent of all pixels. What isn't known is left out."""
        found: dict[str, float | None] = {
            "round": self.round,
            "portion": 100 * float(self.portion),
            "labelled": self._percent(sum(self.labelled)),
        }
        for index, name in enumerate(self.classes):
            found[f"threshold_{name}"] = self.thresholds[index]
            found[f"predicted_{name}"] = self._percent(self.predicted[index])
            found[f"labelled_{name}"] = self._percent(self.labelled[index])
            found[f"accuracy_{name}"] = self.accuracy[index]
        return {f"rounds/{name}": value for name, value in found.items() if value is not None}

    def summary(self, num_rounds: int) -> str:
        """One line for the console."""
        text = f"round {self.round} of {num_rounds}: {self._percent(sum(self.labelled)):.1f} % of the pixels of "
        text += f"{self.images} target images have a label"
        missing = [name for name, count in zip(self.classes, self.labelled, strict=True) if not count]
        return text + (f"; none is {', '.join(missing)}" if missing else "")

    def _percent(self, count: int) -> float:
        return 100 * count / max(1, self.pixels)


def take_over(labels: LabelFolder, places: Iterable[Path], made_from: str) -> list[str] | None:
    """Copies labels from the first folder whose labels can be used, unless they lie where they belong already.

    Args:
        labels: Where they belong.
        places: Folders where they can be.
        made_from: What they must have been made from; see `RoundRecord`.

    Returns:
        `None` if they are there now; else what is wrong with those that were found.

    Raises:
        OSError: If they can't be copied.
    """
    problems = []
    for place in places:
        if not (place / RECORD_FILE).is_file():
            continue
        try:
            record = LabelFolder(place, labels.dataset).record(made_from)
        except DatasetError as error:
            problems.append(str(error))
            continue
        if place.resolve() != labels.folder.resolve():
            labels.copy_from(place, record.images_of(labels.dataset))
        return None
    return problems


def _replace(path: Path, content: bytes) -> None:
    def write(partial: Path) -> None:
        partial.write_bytes(content)

    replace_file(path, write)
