"""Predictions for files, by the config and the checkpoint of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from lightning_uda.callbacks import (
    Colors,
    Confidence,
    Overlay,
    PredictionFormat,
    PredictionWriter,
    RawIds,
    TrainIds,
)
from lightning_uda.cli import run_trainer
from lightning_uda.data.check import counted
from lightning_uda.data.dataset import DatasetError, SegmentationDataset
from lightning_uda.files import LABEL_SPACE_FILE
from lightning_uda.loading import FilesCLI, find_checkpoint, load_weights

_log = logging.getLogger(__name__)


def predict(
    options: list[str],
    images: Sequence[str],
    ckpt_path: Path,
    output: Path,
    write: Sequence[str],
    opacity: float,
    class_map: str | None,
    frames: bool,
    config: Path | None,
) -> None:
    """Predicts files and says what was written where.

    Args:
        options: As for `validate`.
        images: Images, videos, folders, lists.
        ckpt_path: Folder of a run or of a version of it, or a checkpoint.
        output: Folder to write to.
        write: Kinds of `predict_files.KINDS`.
        opacity: Share of the colours in overlays.
        class_map: File with the class of each raw id; `None`: those of Cityscapes.
        frames: Whether videos are written frame by frame.
        config: Config of the run; `None` takes that of its folder.

    Raises:
        CheckpointError: If the run has no whole checkpoint, or the file that is named is damaged.
        DatasetError: If there is no image, or one can't be read.
        FileExistsError: If the output holds predictions already.
        FileNotFoundError: If there is no such run, checkpoint or config.
        ValueError: If the checkpoint doesn't fit the config.
    """
    checkpoint, found_config = find_checkpoint(ckpt_path, config)
    made: dict[str, PredictionFormat] = {
        "color": Colors(),
        "overlay": Overlay(opacity),
        "id": TrainIds(),
        "confidence": Confidence(),
    }
    formats = [RawIds(class_map) if kind == "raw_id" else made[kind] for kind in dict.fromkeys(write)]
    given = ["--config", str(found_config)]
    classes = found_config.with_name(LABEL_SPACE_FILE)
    if classes.is_file():
        given += ["--data.label_space", str(classes)]
    given += ["--data.predict", "MediaFiles", "--data.predict.paths", json.dumps([str(path) for path in images])]
    cli = run_trainer(["validate", *given, *options], FilesCLI)
    _require_readable(cli.datamodule.predict)
    cli.datamodule.check = False  # that was it
    step = load_weights(cli.model, str(checkpoint))
    _log.info("the checkpoint is of step %d: %s", step, checkpoint)
    cli.trainer.callbacks.append(PredictionWriter(output, formats, videos=not frames))  # type: ignore[attr-defined]
    cli.trainer.predict(cli.model, cli.datamodule, return_predictions=False)


def _require_readable(files: SegmentationDataset) -> None:
    if problems := files.check():
        others = len(problems) - 1
        more = f" {counted(others, 'further file')} can't be read either." if others else ""
        raise DatasetError(f"{problems[0].where}: {problems[0].what}{more}")
