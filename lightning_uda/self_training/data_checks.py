"""What self-training in rounds needs of a data module, checked before training."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.data.transforms import TrainTransform


def require_both_domains(data: object, accuracy: bool) -> UDADataModule:
    """The data module, if it has images of both domains.

    Args:
        data: What the trainer was given.
        accuracy: Whether labels of the target set are needed too.

    Raises:
        DatasetError: If a set is missing or empty, or labels are.
        ValueError: If it is no `UDADataModule`.
    """
    if not isinstance(data, UDADataModule):
        raise ValueError("SelfTrainingRounds labels the target set of a UDADataModule; give the trainer one.")
    for name in ("source", "target"):
        dataset: SegmentationDataset | None = getattr(data, name)
        if dataset is None or not len(dataset):
            found = "isn't set" if dataset is None else "is empty"
            raise DatasetError(f"data.{name} {found}, but self-training needs images of both domains. Set it.")
    if accuracy and not target_of(data).has_labels:
        raise DatasetError(
            "SelfTrainingRounds: accuracy=true needs labels of the target set, but data.target has none. Give it its "
            "labels, which are used for that alone, or leave the accuracy out."
        )
    return data


def target_of(data: UDADataModule) -> SegmentationDataset:
    """The target set of a data module that has one."""
    assert data.target is not None
    return data.target


def require_one_size(data: UDADataModule, transforms: Mapping[str, TrainTransform]) -> None:
    """Transforms the first image of each domain, to see whether they can share a batch.

    Args:
        data: The data module.
        transforms: Geometry of "source" and "target".

    Raises:
        ValueError: If they differ in size.
    """
    sizes = {
        name: transform(data.reader(name).load_image(0), None, 0)[0].shape[:2] for name, transform in transforms.items()
    }
    if sizes["source"] != sizes["target"]:
        found = ", ".join(f"{height} x {width} for the {name}" for name, (height, width) in sizes.items())
        raise ValueError(
            f"Source and target images of self-training share batches, but their transforms give {found} (height x "
            "width); expected one size. Give data.source_transform and data.target_transform the same `crop`."
        )
