"""Pictures and confusion matrices for loggers that take them: Weights & Biases and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX, LabelSpace

Array = npt.NDArray[np.uint8]


def log_image(logger: Logger, key: str, image: Array, step: int) -> None:
    """Sends one uint8 (H, W, 3) RGB image to a logger that takes images; others are left alone."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [image], step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, image, step, dataformats="HWC")


def log_masks(
    logger: WandbLogger, key: str, image: Array, masks: Mapping[str, Array], space: LabelSpace, step: int
) -> None:
    """Sends an image with label maps over it, whose classes can be shown and hidden one by one.

    Args:
        logger: W&B's.
        key: Name of the picture.
        image: uint8 (H, W, 3) RGB.
        masks: Name to train ids, uint8 (H, W), 255 for void.
        space: The classes.
        step: Optimiser step.
    """
    labels = {**dict(enumerate(space.classes)), IGNORE_INDEX: "void"}
    layers = {name: {"mask_data": mask, "class_labels": labels} for name, mask in masks.items()}
    logger.log_image(key, [image], step, masks=[layers])


def log_confusion(logger: WandbLogger, key: str, matrix: Tensor, space: LabelSpace, step: int) -> None:
    """Sends a confusion matrix as W&B's chart of that name.

    Args:
        logger: W&B's.
        key: Name of the chart.
        matrix: Pixel counts (C, C), rows = ground truth.
        space: The classes.
        step: Optimiser step.
    """
    import wandb  # which runs without it are spared

    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    counts = matrix.tolist()
    rows = [
        [actual, predicted, counts[i][j]]
        for i, actual in enumerate(space.classes)
        for j, predicted in enumerate(space.classes)
    ]
    chart: Any = wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=rows),
        {str(name): name for name in columns},
        {"title": key},
    )
    logger.log_metrics({key: chart}, step)
