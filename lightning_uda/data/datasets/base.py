"""What every dataset offers to the data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file or with a whole dataset.

    Attributes:
        where: File or folder.
        what: What was found, what was expected and how to mend it, in one line.
    """

    where: str
    what: str


class DatasetError(RuntimeError):
    """A dataset can't be used as configured; the message names the files and the fix."""


class SegmentationDataset(ABC):
    """A numbered set of RGB images with, optionally, label maps of raw ids.

    Images and labels are read by separate methods, so that unlabelled target training never opens a label.
    Readers do no resizing, cropping, remapping or normalisation.

    Attributes:
        class_ids: Class name of each raw label id; `None` stands for void.
        strict_ids: Whether a raw id outside `class_ids` is an error (else it is void).
        has_labels: Whether `load_label` works.
    """

    class_ids: Mapping[int, str | None]
    strict_ids: bool = False
    has_labels: bool = True

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of an image, without folder or extension; unique in the set."""

    @abstractmethod
    def load_image(self, index: int) -> npt.NDArray[np.uint8]:
        """Image `index` as uint8 (H, W, 3), RGB."""

    @abstractmethod
    def load_label(self, index: int) -> npt.NDArray[np.uint8]:
        """Label map of image `index` as uint8 (H, W) of raw ids."""

    def image_file(self, index: int) -> str:
        """How messages call the file of image `index`."""
        return f"{self.name(index)} (image)"

    def label_file(self, index: int) -> str:
        """How messages call the file of the label map of image `index`."""
        return f"{self.name(index)} (label)"

    def check(self, labels: bool = True) -> list[Problem]:
        """Looks for problems that would stop or spoil a run, without decoding every image.

        Args:
            labels: Whether to look at labels too; off for a set that is used without them.

        Returns:
            One entry per problem; empty if the set can be used.
        """
        return []
