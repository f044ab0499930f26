"""Predictions as the test servers of ACDC and Dark Zurich want them."""

from __future__ import annotations

from lightning_uda.callbacks.prediction_formats import TrainIds
from lightning_uda.label_spaces import CITYSCAPES_CLASSES, LabelSpace

_IMAGE_SUFFIX = "_rgb_anon"


class AnonymizedTrainIds(TrainIds):
    """Cityscapes' train ids under the names of the image files: `labelTrainIds/<name>_rgb_anon.png`.

    This is what published programs (MIC, HRDA) send to the test servers of ACDC and Dark Zurich, in one folder without
    subfolders. `data.predict` is the test split: `ACDC` with `split: test` and `labelled: false`.

    Args:
        zip: Whether `labelTrainIds.zip` is made, ready to be sent in.
    """

    folder = "labelTrainIds"

    def __init__(self, zip: bool = False) -> None:
        self.zip = zip

    def check(self, label_space: LabelSpace) -> None:
        """Checks that the classes are Cityscapes' 19, whose numbers the servers know.

        Raises:
            ValueError: If they aren't.
        """
        if label_space.classes != CITYSCAPES_CLASSES:
            raise ValueError(
                f"AnonymizedTrainIds: found the {label_space.num_classes} classes of label space {label_space.name!r}; "
                "expected Cityscapes' 19 in their order, whose numbers the test servers know. Predict with a network "
                "of these classes, or leave this output out."
            )

    def file_name(self, name: str) -> str:
        """`<name>_rgb_anon`."""
        return f"{name.removesuffix(_IMAGE_SUFFIX)}{_IMAGE_SUFFIX}"
