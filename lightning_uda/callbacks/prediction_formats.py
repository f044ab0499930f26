"""How predicted label maps look as images: for viewing, for other programs and for the Cityscapes test server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.datasets.folder import read_class_ids
from lightning_uda.label_spaces import CITYSCAPES_IDS, LabelSpace
from lightning_uda.ranges import SHARE, SIDE, ranged

Array = npt.NDArray[np.uint8]

_IMAGE_SUFFIX = "_leftImg8bit"


class Prediction(NamedTuple):
    """What is predicted of an image.

    Attributes:
        labels: Train ids, uint8 (H, W).
        confidence: Probability of the predicted class, float32 (H, W) in [0, 1]; `None` unless a format needs it.
        image: The image as it is in its file, uint8 (H, W, 3) RGB; `None` unless a format needs it.
    """

    labels: Array
    confidence: npt.NDArray[np.float32] | None = None
    image: Array | None = None


class PredictionFormat(ABC):
    """How predictions are written: `<output_dir>/<folder>/<file name>.png`, or one video of a video's frames.

    Attributes:
        folder: Folder below the writer's.
        needs_confidence: Whether it shows how sure the network is.
        needs_image: Whether it shows the image.
        is_for_eyes: Whether frames of a video may become a video again, which loses small differences.
        zip: Whether the folder is also packed into `<output_dir>/<folder>.zip` once all predictions are there.
    """

    folder: str
    needs_confidence: bool = False
    needs_image: bool = False
    is_for_eyes: bool = False
    zip: bool = False

    def check(self, label_space: LabelSpace) -> None:  # noqa: B027  most formats take any label space
        """Raises a ValueError if predictions of this label space can't be written so."""

    def file_name(self, name: str) -> str:
        """Name of the file, without extension, for the image called `name`."""
        return name

    @abstractmethod
    def encode(self, prediction: Prediction, label_space: LabelSpace) -> Array:
        """Pixels of the file: uint8 (H, W) or (H, W, 3)."""


class TrainIds(PredictionFormat):
    """Train ids: `id/<name>.png`."""

    folder = "id"

    def encode(self, prediction: Prediction, label_space: LabelSpace) -> Array:
        """The train ids themselves."""
        return prediction.labels


class Colors(PredictionFormat):
    """Colours of the classes: `color/<name>.png`."""

    folder = "color"
    is_for_eyes = True

    def encode(self, prediction: Prediction, label_space: LabelSpace) -> Array:
        """RGB, uint8 (H, W, 3)."""
        return label_space.colorize(prediction.labels)


class Overlay(PredictionFormat):
    """The image under the colours of the classes: `overlay/<name>.png`.

    Args:
        opacity: Share of the colours, in [0, 1].
    """

    folder = "overlay"
    needs_image = True
    is_for_eyes = True

    @ranged(opacity=SHARE)
    def __init__(self, opacity: float = 0.5) -> None:
        self.opacity = opacity

    def encode(self, prediction: Prediction, label_space: LabelSpace) -> Array:
        """RGB, uint8 (H, W, 3)."""
        assert prediction.image is not None
        colors = label_space.colorize(prediction.labels)
        return np.asarray(cv2.addWeighted(colors, self.opacity, prediction.image, 1 - self.opacity, 0), dtype=np.uint8)


class Confidence(PredictionFormat):
    """Probability of the predicted class: `confidence/<name>.png`, grey from 0 (black) to 1 (white)."""

    folder = "confidence"
    needs_confidence = True

    def encode(self, prediction: Prediction, label_space: LabelSpace) -> Array:
        """255 times the probability, uint8 (H, W)."""
        assert prediction.confidence is not None
        return np.asarray((255 * prediction.confidence).round(), dtype=np.uint8)


class RawIds(PredictionFormat):
    """Ids as label files of a dataset have them: `raw_id/<name>.png`.

    Args:
        class_map: Class name of each raw id, or a JSON or YAML file with them, as for `FolderDataset`. `None` stands
            for the label ids of Cityscapes. Of several ids of a class the lowest is written.
    """

    folder = "raw_id"

    def __init__(self, class_map: dict[int, str | None] | str | None = None) -> None:
        self.class_ids = CITYSCAPES_IDS if class_map is None else read_class_ids(Path(), class_map)

    def check(self, label_space: LabelSpace) -> None:
        """Checks that each class has a raw id.

        Raises:
            ValueError: If one has none.
        """
        if missing := sorted(set(label_space.classes) - set(self.class_ids.values())):
            raise ValueError(
                f"RawIds: no raw id stands for the classes {missing}. Give the class map of your labels "
                "(--class_map data/source/classes.json), or leave this output out."
            )

    def encode(self, prediction: Prediction, label_space: LabelSpace) -> Array:
        """Raw ids, uint8 (H, W)."""
        written: Array = label_space.raw_id_table(self.class_ids)[prediction.labels]
        return written


class CityscapesLabelIds(PredictionFormat):
    """Cityscapes label ids as its test server wants them: `label_ids/<name>_pred_labelIds.png`, 2048 x 1024.

    The ending `_leftImg8bit` of an image's name is left out. Class names say which id is written, so label spaces of 19
    and of 16 classes will do.

    Args:
        zip: Whether `label_ids.zip` is made, ready to be sent in.
        size: Height and width that the server expects, checked for each prediction; `None` takes any.
    """

    folder = "label_ids"

    @ranged(size=SIDE)
    def __init__(self, zip: bool = False, size: tuple[int, int] | None = (1024, 2048)) -> None:
        self.zip = zip
        self.size = size

    def check(self, label_space: LabelSpace) -> None:
        """Checks that all classes are Cityscapes classes.

        Raises:
            ValueError: If one isn't.
        """
        if unknown := [name for name in label_space.classes if name not in CITYSCAPES_IDS.values()]:
            raise ValueError(
                f"CityscapesLabelIds: label space {label_space.name!r} has classes {unknown}, which have no Cityscapes "
                "id. Predict with a network of Cityscapes classes, or leave this output out."
            )

    def file_name(self, name: str) -> str:
        """`<name>_pred_labelIds`."""
        return f"{name.removesuffix(_IMAGE_SUFFIX)}_pred_labelIds"

    def encode(self, prediction: Prediction, label_space: LabelSpace) -> Array:
        """Label ids, uint8 (H, W).

        Raises:
            ValueError: If the prediction hasn't the size the server expects.
        """
        pred = prediction.labels
        if self.size is not None and pred.shape != tuple(self.size):
            raise ValueError(
                f"CityscapesLabelIds: found a prediction of {pred.shape[0]} x {pred.shape[1]} (height x width), the "
                f"test server expects {self.size[0]} x {self.size[1]}. Predict the original images, or set `size: "
                "null` to write any size."
            )
        written: Array = label_space.raw_id_table(CITYSCAPES_IDS)[pred]
        return written
