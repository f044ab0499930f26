"""Pictures of what a run sees and predicts: PNG files in the run folder, strips in the loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_uda.callbacks.logger_media import log_image, log_masks
from lightning_uda.data.datamodule import EvaluationImages
from lightning_uda.label_spaces import IGNORE_INDEX, LabelSpace
from lightning_uda.metrics import latest_image_scores
from lightning_uda.ranges import COUNT, COUNT_OR_NONE, SIDE, ranged
from lightning_uda.step import Labels, View
from lightning_uda.tables import write_table

Array = npt.NDArray[np.uint8]

PANELS_FOLDER = "panels"
"""Name of the folder of pictures in a run folder."""

_STREAMS = ("source", "target", "union")
_WRONG = (213, 94, 0)
_CAPTION_HEIGHT = 26
_GAP = 6


class ImagePanels(Callback):
    """Draws images, labels and predictions at each validation, and what the last training batch was made of.

    Tiles are written as `panels/step_000800/val_0_image.png`, `..._mask.png`, `..._prediction.png` (`test_...` when
    testing) and `train_0_source.png`, `..._source_mask.png`, `..._target.png` (in self-training `..._union.png` and
    `..._union_mask.png`); each further view of the student (`last_views` of the module), such as DACS's "mixed", adds
    `train_0_mixed_image.png` and, where it was taught, `..._mixed_mask.png` and `..._mixed_weights.png`. Loggers that
    take images get one captioned strip per sample; of an evaluation W&B gets the image with both label maps as masks
    over it, by class. Nothing is copied from the device except when pictures are drawn.

    After an evaluation its worst and best images, by the scores that `IoUTable` keeps, are put through the network once
    more and drawn as `val_worst_0_image.png`, `val_best_0_...`, with a tile `..._errors.png`: right pixels light, wrong
    ones orange, void black. `val_extremes.csv` has their names and scores.

    Args:
        num_images: How many samples of each kind are drawn.
        every_n_steps: Optimiser steps between training pictures; `None` draws them at each validation.
        at_steps: Further steps after which training pictures are drawn, such as the first ones, in which mistakes show.
        max_width: Wider pictures are reduced to this many pixels.
        num_extremes: How many of the worst and of the best images are drawn, at most half of the set each.
    """

    @ranged(num_images=COUNT, every_n_steps=COUNT, max_width=SIDE, num_extremes=COUNT_OR_NONE, at_steps=COUNT)
    def __init__(
        self,
        num_images: int = 4,
        every_n_steps: int | None = None,
        max_width: int = 640,
        num_extremes: int = 2,
        at_steps: Sequence[int] = (),
    ) -> None:
        self.num_images = num_images
        self.every_n_steps = every_n_steps
        self.max_width = max_width
        self.num_extremes = num_extremes
        self.at_steps = frozenset(at_steps)
        self._folder: Path | None = None
        self._train_batch: Any = None
        self._last_drawn_step = 0
        self._drawn = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds the run folder, for which all ranks are needed at once."""
        self._folder = Path(trainer.log_dir) if trainer.loggers and trainer.log_dir else None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remembers the batch, and draws it if its step is due."""
        self._train_batch = batch
        step = trainer.global_step
        due = step in self.at_steps or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        if due and step != self._last_drawn_step:
            self._draw_train(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the last batch, which takes memory."""
        self._train_batch = None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws the most recent training batch, unless training pictures have their own interval."""
        self._drawn = 0
        if self.every_n_steps is None and not trainer.sanity_checking:
            self._draw_train(trainer, pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting the pictures of a test."""
        self._drawn = 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the first images of a validation."""
        if not trainer.sanity_checking:
            self._draw_evaluation(trainer, pl_module, "val", batch, outputs)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the first images of a test."""
        self._draw_evaluation(trainer, pl_module, "test", batch, outputs)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws the worst and the best images of a validation."""
        if not trainer.sanity_checking:
            self._draw_extremes(trainer, pl_module, "val", trainer.val_dataloaders)

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws the worst and the best images of a test."""
        self._draw_extremes(trainer, pl_module, "test", trainer.test_dataloaders)

    def _draw_extremes(self, trainer: pl.Trainer, pl_module: Any, stage: str, loader: Any) -> None:
        images = getattr(loader, "dataset", None)
        if self._folder is None or not trainer.is_global_zero or not isinstance(images, EvaluationImages):
            return
        if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            return  # sharded networks need all processes
        scores = latest_image_scores(self._folder, stage)
        count = min(self.num_extremes, len(scores) // 2)
        chosen = {f"worst_{i}": scores[i] for i in range(count)} | {f"best_{i}": scores[-1 - i] for i in range(count)}
        wanted = {name for name, _ in chosen.values()}
        indices = {name: i for i in range(len(images)) if (name := images.dataset.name(i)) in wanted}
        chosen = {picture: score for picture, score in chosen.items() if score[0] in indices}
        for picture, (name, _) in chosen.items():
            item = images[indices[name]]
            image, mask = torch.from_numpy(item["image"]), torch.from_numpy(item["mask"])
            with trainer.precision_plugin.val_step_context():
                pred = pl_module.predict_labels(image.unsqueeze(0).to(pl_module.device), mask.shape)[0].cpu()
            tiles = {
                "image": _picture(image),
                "mask": _label_picture(mask, pl_module.label_space),
                "prediction": _label_picture(pred, pl_module.label_space),
                "errors": _error_picture(pred, mask),
            }
            self._save(trainer, f"{stage}_{picture}", tiles, f"{stage}/{picture}")
        if chosen:
            table = self._step_folder(self._folder, trainer) / f"{stage}_extremes.csv"
            rows = [{"picture": picture, "image": name, "miou": miou} for picture, (name, miou) in chosen.items()]
            write_table(table, list(rows[0]), rows)

    @staticmethod
    def _step_folder(run: Path, trainer: pl.Trainer) -> Path:
        return run / PANELS_FOLDER / f"step_{trainer.global_step:06d}"

    def _draw_evaluation(self, trainer: pl.Trainer, pl_module: Any, stage: str, batch: Any, outputs: Any) -> None:
        if not trainer.is_global_zero:
            return
        space = pl_module.label_space
        for index in range(min(self.num_images - self._drawn, len(batch["image"]))):
            tiles = {
                "image": _picture(batch["image"][index]),
                "mask": _label_picture(batch["mask"][index], space),
                "prediction": _label_picture(outputs["pred"][index], space),
            }
            maps = {"labels": batch["mask"][index], "prediction": outputs["pred"][index]}
            self._save(trainer, f"{stage}_{self._drawn}", tiles, f"{stage}/panel_{self._drawn}", maps, space)
            self._drawn += 1

    def _draw_train(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._last_drawn_step = trainer.global_step
        if (batch := self._train_batch) is None or not trainer.is_global_zero:
            return
        for index in range(min(self.num_images, len(_streams_of(batch)[0][1]["image"]))):
            tiles = _train_tiles(batch, getattr(pl_module, "last_views", {}), index, pl_module.label_space)
            self._save(trainer, f"train_{index}", tiles, f"train/panel_{index}")

    def _save(
        self,
        trainer: pl.Trainer,
        prefix: str,
        tiles: Mapping[str, Array],
        key: str,
        maps: Mapping[str, Tensor] = MappingProxyType({}),
        space: LabelSpace | None = None,
    ) -> None:
        tiles = {name: _shrink(name, tile, self.max_width) for name, tile in tiles.items()}
        if self._folder is not None:
            target = self._step_folder(self._folder, trainer)
            target.mkdir(parents=True, exist_ok=True)
            for name, tile in tiles.items():
                Image.fromarray(tile).save(target / f"{prefix}_{name}.png")
        strip = compose_strip(tiles)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and space is not None:
                height, width = tiles["image"].shape[:2]
                masks = {name: _resize("mask", _ids(ids), width, height) for name, ids in maps.items()}
                log_masks(logger, key, tiles["image"], masks, space, trainer.global_step)
            else:
                log_image(logger, key, strip, trainer.global_step)


def compose_strip(tiles: Mapping[str, Array]) -> Array:
    """Sets captioned pictures side by side.

    Args:
        tiles: Caption to uint8 (H, W, 3) RGB; all are brought to the height of the first.

    Returns:
        uint8 (H + caption, sum of widths and gaps, 3) on white.
    """
    height = next(iter(tiles.values())).shape[0]
    scaled = {
        name: _resize(name, tile, round(tile.shape[1] * height / tile.shape[0]), height) for name, tile in tiles.items()
    }
    width = sum(tile.shape[1] for tile in scaled.values()) + _GAP * (len(tiles) - 1)
    strip = Image.new("RGB", (width, height + _CAPTION_HEIGHT), "white")
    draw, font, left = ImageDraw.Draw(strip), ImageFont.load_default(14), 0
    for name, tile in scaled.items():
        strip.paste(Image.fromarray(tile), (left, _CAPTION_HEIGHT))
        draw.text((left + 2, 4), name.replace("_", " "), fill=(60, 60, 60), font=font)
        left += tile.shape[1] + _GAP
    return np.asarray(strip)


def _train_tiles(batch: Any, seen: Mapping[str, View], index: int, space: LabelSpace) -> dict[str, Array]:
    """Pictures of image `index` of each stream, and of what the student saw besides the labelled ones."""
    tiles = {}
    for name, part in _streams_of(batch):
        tiles[name] = _picture(part["image"][index])
        if "mask" in part:
            tiles[f"{name}_mask"] = _label_picture(part["mask"][index], space)
    for name, view in seen.items():
        if "mask" in batch.get(name, ()):  # a labelled stream, drawn above
            continue
        tiles[f"{name}_image"] = _picture(view.image[index])
        labels = [part for part in view.labels if isinstance(part, Labels)]
        if labels:
            tiles[f"{name}_mask"] = _label_picture(labels[0].mask[index], space)
        if weights := [part.weights for part in labels if isinstance(part.weights, Tensor)]:
            tiles[f"{name}_weights"] = _weight_picture(sum(weights[1:], weights[0]).expand_as(labels[0].mask)[index])
    return tiles


def _streams_of(batch: Any) -> list[tuple[str, Any]]:
    """The streams of whole images in a batch."""
    return [(name, batch[name]) for name in _STREAMS if name in batch]


def _picture(image: Tensor) -> Array:
    """RGB (3, H, W), uint8 or float in [0, 1], as uint8 (H, W, 3)."""
    array = image.detach().permute(1, 2, 0).cpu()
    if array.is_floating_point():
        array = (array.float().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(array.numpy())


def _label_picture(mask: Tensor, space: LabelSpace) -> Array:
    return space.colorize(mask.detach().cpu().numpy())


def _error_picture(pred: Tensor, mask: Tensor) -> Array:
    """Where a prediction (H, W) is wrong: orange on light grey, which any eye tells apart; void is black."""
    colors = np.array([(225, 225, 225), _WRONG, (0, 0, 0)], dtype=np.uint8)
    kinds = (pred != mask).long().masked_fill(mask == IGNORE_INDEX, 2)
    return np.asarray(colors[kinds.numpy()])


def _ids(mask: Tensor) -> Array:
    """Train ids (H, W) as uint8."""
    return np.asarray(mask.detach().cpu().numpy(), dtype=np.uint8)


def _weight_picture(weights: Tensor) -> Array:
    """Weights (H, W) in [0, 1] in the colours of viridis, as uint8 (H, W, 3) RGB."""
    levels = (weights.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1])


def _shrink(name: str, tile: Array, max_width: int) -> Array:
    height, width = tile.shape[:2]
    return tile if width <= max_width else _resize(name, tile, max_width, max(1, round(height * max_width / width)))


def _resize(name: str, tile: Array, width: int, height: int) -> Array:
    """Resizes photos smoothly, and label maps without making new colours."""
    if tile.shape[:2] == (height, width):
        return tile
    is_photo = name == "image" or name in _STREAMS or name.endswith("_image")
    interpolation = cv2.INTER_AREA if is_photo else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(tile, (width, height), interpolation=interpolation), dtype=np.uint8)
