"""How the classes of source and target lie in the feature space of a trained network: measured, tabulated, drawn."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich
import torch
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_uda.callbacks.adapt_batch_norm import AdaptBatchNorm
from lightning_uda.cli import UDACLI, run_trainer
from lightning_uda.data.check import require_usable
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.files import require_folder_place, shown
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.loading import PartsCLI, load_weights
from lightning_uda.methods import UDAModule
from lightning_uda.metrics.feature_space import ClassCenters, ClassDistances, PixelSample, center_similarity
from lightning_uda.networks import SegmentationNetwork
from lightning_uda.report.feature_figures import (
    embed,
    require_scikit_learn,
    save_figure,
    similarity_figure,
    tsne_figure,
)
from lightning_uda.resize import size_of, subsample
from lightning_uda.step import to_float
from lightning_uda.tables import Row, console_table, write_table
from lightning_uda.terms.pull_loss import pixel_rows

CLASSES_FILE, SIMILARITY_FILE, TSNE_FILE = "classes.csv", "similarity.png", "tsne.png"
PIXELS_PER_CLASS, PERPLEXITY = 256, 30
_SETS = {"source": "source", "target": "val"}
"""The set of the data module that stands for each domain."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Domain:
    """What was measured of one domain.

    Attributes:
        pixels: Pixels of each class on the feature grid, int64 (C,).
        centers: Mean features, float64 (C, D).
        ccd: Class centre distances, float64 (C,).
        pdd: Pixel-wise discrimination distances, float64 (C,).
        skipped: Pixels of each class that PDD leaves out, int64 (C,).
        sample: Features (S, D) of some pixels of each class, and their classes (S,).
    """

    pixels: Tensor
    centers: Tensor
    ccd: Tensor
    pdd: Tensor
    skipped: Tensor
    sample: tuple[Tensor, Tensor]


def analyze(options: list[str], output: Path, num_images: int | None, with_tsne: bool) -> None:
    """Prints and writes distances and similarity of classes in feature space, and draws them.

    Args:
        options: As for `validate`.
        output: Folder for table and figures.
        num_images: Images of each set, evenly spread over it; `None` for all.
        with_tsne: Whether t-SNE is drawn too.

    Raises:
        OSError: If the folder holds such files already or can't be written to, or the checkpoint isn't there.
        DatasetError: If source or val isn't set, has no labels, or can't be read.
        ValueError: If scikit-learn is missing, or an option is out of its range.
    """
    names = [CLASSES_FILE, SIMILARITY_FILE, *([TSNE_FILE] if with_tsne else [])]
    _require_free(output, names)
    if with_tsne:
        require_scikit_learn()
    cli = run_trainer(["validate", *options], kind=PartsCLI)
    module, data = cli.model, cli.datamodule
    loaders = _loaders(data, num_images)
    path = cli.config["validate"]["ckpt_path"]
    step = None if path is None else load_weights(module, path)
    network = _ready(cli)
    output.mkdir(parents=True, exist_ok=True)

    found = {name: measure(network, loader, name, module.seed) for name, loader in loaders.items()}
    similarity = center_similarity(found["source"].centers, found["target"].centers)
    title = type(module).__name__ + ("" if step is None else f" at step {step}")
    rich.get_console().print(_table(found, similarity, module.label_space, f"Feature space of {title}"))
    _print_skipped(found)
    _write_classes(output / CLASSES_FILE, found, similarity, module.label_space)
    heading = f"Similarity of source and target: {title}"
    save_figure(similarity_figure(similarity.tolist(), module.label_space, heading), output / SIMILARITY_FILE)
    if with_tsne:
        _draw_tsne(output / TSNE_FILE, found, module, f"t-SNE of source and target: {title}")
    rich.get_console().print(str(output), soft_wrap=True, highlight=False, markup=False)


@torch.no_grad()
def measure(
    network: SegmentationNetwork,
    loader: DataLoader[Any],
    domain: str,
    seed: int,
    *,
    pixels_per_class: int = PIXELS_PER_CLASS,
    progress: bool = True,
) -> Domain:
    """Goes through the images of a domain twice, for the centres and for the distances from them.

    Args:
        network: In eval mode, on the device to work on.
        loader: As `UDADataModule.labelled_dataloader` gives it.
        domain: Its name, for the progress bar.
        seed: Of the sample of pixels.
        pixels_per_class: Most pixels of each class in the sample.
        progress: Whether progress bars are shown, on stderr.
    """
    centers = ClassCenters(network.num_classes)
    sample = PixelSample(network.num_classes, pixels_per_class, seed)
    for rows, labels in feature_pixels(network, loader, f"Centres of {domain}", progress):
        centers.update(rows, labels)
        sample.update(rows, labels)
    distances = ClassDistances(centers.compute())
    for rows, labels in feature_pixels(network, loader, f"Distances in {domain}", progress):
        distances.update(rows, labels)
    features, classes = sample.compute()
    return Domain(
        pixels=centers.counts.cpu(),
        centers=distances.centers.cpu(),
        ccd=distances.ccd().cpu(),
        pdd=distances.pdd().cpu(),
        skipped=distances.skipped.cpu(),
        sample=(features.cpu(), classes.cpu()),
    )


def feature_pixels(
    network: SegmentationNetwork, loader: DataLoader[Any], title: str, progress: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels of the encoder's last level, batch by batch: features float32 (P, D), and classes int64 (P,).

    Masks are brought to the grid of the features by nearest neighbour.
    """
    device = next(network.parameters()).device
    for batches in shown(loader, title, len(loader), progress):
        for batch in batches:
            features = network.encode(to_float(batch["image"].to(device)))[-1]
            labels = subsample(batch["mask"].to(device), size_of(features))
            yield pixel_rows(features), labels.long().flatten()


def _require_free(folder: Path, names: list[str]) -> None:
    require_folder_place(folder, "--output")
    if there := [name for name in names if (folder / name).exists()]:
        raise FileExistsError(
            f"--output: found {', '.join(there)} of an earlier analysis in {folder}. Move them away, or give another "
            "folder."
        )


def _loaders(data: UDADataModule, num_images: int | None) -> dict[str, DataLoader[Any]]:
    data.setup("validate")
    loaders = {domain: data.labelled_dataloader(name, num_images) for domain, name in _SETS.items()}
    if data.check:
        require_usable({name: data.datasets[name] for name in _SETS.values()}, {})
    return loaders


def _ready(cli: UDACLI) -> SegmentationNetwork:
    """The evaluated network, on the trainer's device, as evaluation would have it."""
    module, trainer = cli.model, cli.trainer
    module.trainer = trainer
    module.to(trainer.strategy.root_device).eval()
    for callback in (*trainer.callbacks, *module.configure_callbacks()):  # type: ignore[attr-defined]
        if isinstance(callback, AdaptBatchNorm):
            callback.adapt(module, cli.datamodule)
    network: SegmentationNetwork = module.evaluated_network()
    network.require_features("analyze")
    return network


_SHORT = {"source": "src", "target": "tgt"}
"""Domains in headings, so that the table fits into 80 columns."""


def _columns(found: Mapping[str, Domain], similarity: Tensor) -> dict[str, Tensor]:
    """Values of all classes, (C,), by column."""
    columns = {
        f"{name}_{domain}": values
        for name in ("pixels", "ccd", "pdd", "skipped")
        for domain, measured in found.items()
        for values in (getattr(measured, name),)
    }
    return {**columns, "similarity": similarity}


def _write_classes(path: Path, found: Mapping[str, Domain], similarity: Tensor, space: LabelSpace) -> None:
    columns = {name: values.tolist() for name, values in _columns(found, similarity).items()}
    rows = [
        {"class": name, **{column: values[i] for column, values in columns.items()}}
        for i, name in enumerate(space.classes)
    ]
    write_table(path, ["class", *columns], rows)


def _table(found: Mapping[str, Domain], similarity: Tensor, space: LabelSpace, title: str) -> Table:
    columns = {name: values for name, values in _columns(found, similarity).items() if "skipped" not in name}
    rows = [
        Row(name, [_cell(values[i]) for values in columns.values()], color)
        for i, (name, color) in enumerate(zip(space.classes, space.palette, strict=True))
    ]
    means = [_cell(values.nanmean()) if values.is_floating_point() else "" for values in columns.values()]
    headings = [*(f"{name}\n{_SHORT[domain]}" for name in ("pixels", "CCD", "PDD") for domain in found), "cosine"]
    return console_table(title, ("class", *headings), [*rows, Row("mean", means, style="bold", section=True)])


def _cell(value: Tensor) -> str:
    if not value.is_floating_point():
        return f"{int(value):,}"
    return "-" if value.isnan() else f"{float(value):.3f}"


def _print_skipped(found: Mapping[str, Domain]) -> None:
    counts = ", ".join(
        f"{int(measured.skipped.sum()):,} of {int(measured.pixels.sum()):,} in {domain}"
        for domain, measured in found.items()
    )
    rich.get_console().print(f"Pixels left out of PDD, denominator within 1e-6 of 0: {counts}.", highlight=False)


def _draw_tsne(path: Path, found: Mapping[str, Domain], module: UDAModule, title: str) -> None:
    rows = torch.cat([measured.sample[0] for measured in found.values()])
    if len(rows) <= PERPLEXITY:
        _log.warning("t-SNE is left out: found %d pixels, it needs more than %d", len(rows), PERPLEXITY)
        return
    places = embed(rows, module.seed, PERPLEXITY)
    first = len(found["source"].sample[0])
    points = {
        "source": (places[:first], found["source"].sample[1]),
        "target": (places[first:], found["target"].sample[1]),
    }
    save_figure(tsne_figure(points, module.label_space, title), path)
