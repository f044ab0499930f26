"""The long-tail classes of the source set, chosen from its labels, and the `tail` stream that shows them (DSP)."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import rich
from lightning.pytorch.callbacks import Callback
from PIL import Image
from rich.bar import Bar
from rich.table import Table
from torch import Tensor

from lightning_uda.callbacks.logger_media import log_image
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.sampling import LongTail, TailClasses
from lightning_uda.data.statistics import ClassStatistics, class_statistics
from lightning_uda.files import replace_file
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.ranges import COUNT, ranged
from lightning_uda.tables import Row, console_table, csv_text

STATISTICS_FILE = "class_statistics.csv"
"""Name of the table in a run folder: class, images, images_percent, pixels_percent, tail (yes or no)."""

CHART_FILE = "class_statistics.png"
"""Name of the bar chart beside it."""

MANY_IMAGES = 0.9
"""Share of the images above which a class can hardly be called a rare one: there is a warning."""

NEARLY_AS_RARE = 1.5
"""There is a warning of a class that is left out though it is in at most this multiple of the images that hold the most
frequent of the long-tail classes."""

_log = logging.getLogger(__name__)
_INK, _MUTED, _STRONG = "#30343b", "#b8c2d1", "#e8743b"


class LongTailStatistics(Callback):
    """Feeds the `tail` stream with the classes that the fewest source images hold (Eq. 1 of DSP).

    Before training the labels of `data.source` are counted at the size of their files, or the counts of an earlier run
    are read. Of several processes one counts, while the others wait for its file. The choice is shown as a table, and
    written as `class_statistics.csv` and `class_statistics.png` into the run folder (nothing is written without a
    logger); loggers that take images get the chart.

    There is a warning if one of the classes is in more than nine of ten images, since pasting it more often changes
    little, and if a class is left out that is nearly as rare as one of them: a network comes to take what looks alike
    (bicycles) for the classes that are pasted (motorcycles).

    At logging steps `train/tail_pixels_<class>` is the share (0-1) of the pixels that a class is pasted on.

    The method must offer `long_tail_k`, the number of classes that it pastes per step; at 0 nothing is counted or fed.

    Args:
        num_classes: K, the number of long-tail classes; in the paper 5 for GTA5 and 4 for SYNTHIA; or "gap", which
            takes those in front of the largest rise of the number of images. `None`, with `classes` left out too,
            takes the method's `long_tail_classes`.
        classes: Names of the long-tail classes, if they shall not be chosen by count, such as the paper's for GTA5:
            rider, bus, train, motorcycle, bicycle.
        max_tries: Images and crops tried for a class before it is left out of a sample. The published programs try
            1,000 times (July 2021) or for ever (September 2021).
        all_chosen_classes: Whether each of the k images gives its pixels of all k classes (Algorithm 1 of the paper to
            the letter), not only of the class that it was drawn for (the published program).
        cache_dir: Folder for the counts; `None` takes the data module's `cache_dir` or, if it has none, the user's
            cache folder (`$LIGHTNING_UDA_CACHE`, or `~/.cache/lightning_uda`).

    Raises:
        ValueError: If a number is below 1.
    """

    @ranged(num_classes=COUNT, max_tries=COUNT)
    def __init__(
        self,
        num_classes: int | Literal["gap"] | None = None,
        classes: Sequence[str] | None = None,
        max_tries: int = 100,
        all_chosen_classes: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.classes = classes
        self.max_tries = max_tries
        self.all_chosen_classes = all_chosen_classes
        self.cache_dir = cache_dir
        self._folder: Path | None = None
        self._found: tuple[LabelSpace, ClassStatistics, list[int]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Counts, chooses and supplies the stream; asks for the run folder, which all ranks have to do together.

        Raises:
            ValueError: If the method has no `long_tail_k`, if there is no labelled source set of a `UDADataModule`, or
                if the classes can't be chosen or are fewer than the method pastes.
            DatasetError: If a label can't be read.
        """
        if stage != "fit":
            return
        self._found = None
        self._folder = Path(trainer.log_dir) if trainer.loggers and trainer.log_dir else None
        k = _classes_per_step(pl_module)
        if k == 0:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, UDADataModule) or data.source is None:
            raise ValueError(
                "LongTailStatistics counts the labels of data.source, but found no UDADataModule with a source set. "
                "Give the trainer one, or take the callback out of trainer.callbacks."
            )
        statistics = class_statistics(data.source, data.label_space, self.cache_dir or data.cache_dir)
        classes = self.classes or self.num_classes or cast(TailClasses, pl_module.long_tail_classes)
        sampling = LongTail(k, classes, self.max_tries, self.all_chosen_classes)
        chosen = sampling.chosen(statistics)
        _warn_of_frequent(statistics, chosen)
        _warn_of_left_out(statistics, chosen)
        data.feed("tail", lambda: sampling.stream(data.origin("tail", "source"), lambda: statistics))
        self._found = data.label_space, statistics, chosen

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the table, and writes it and the chart."""
        if self._found is None or not trainer.is_global_zero:
            return
        label_space, statistics, chosen = self._found
        rich.get_console().print(statistics_table(label_space, statistics, chosen))
        chart = draw_chart(statistics, chosen)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._folder / STATISTICS_FILE, lambda path: _write_csv(path, statistics, chosen))
            replace_file(self._folder / CHART_FILE, lambda path: Image.fromarray(chart).save(path, format="png"))
        for logger in trainer.loggers:
            log_image(logger, "class_statistics", chart, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the share of the pixels that each long-tail class is pasted on, at logging steps only."""
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._found is None or interval == 0 or trainer.global_step % interval:
            return
        _, statistics, chosen = self._found
        mask: Tensor = batch["tail"]["mask"]
        for c in chosen:
            name = f"train/tail_pixels_{statistics.classes[c].replace(' ', '_')}"
            pl_module.log(name, (mask == c).any(dim=1).float().mean())


def _classes_per_step(module: Any) -> int:
    k: int | None = getattr(module, "long_tail_k", None)
    if k is None:
        raise ValueError(
            f"LongTailStatistics needs a method with long_tail_k, such as DSP; found {type(module).__name__}. Take the "
            "callback out of trainer.callbacks, or choose such a method."
        )
    return k


def _warn_of_frequent(statistics: ClassStatistics, chosen: Sequence[int]) -> None:
    frequent = {c: statistics.image_frequency[c] for c in chosen if statistics.image_frequency[c] > MANY_IMAGES}
    if frequent:
        listed = ", ".join(f"{statistics.classes[c]} ({100 * share:.0f} %)" for c, share in frequent.items())
        _log.warning(
            "LongTailStatistics: found long-tail classes that are in more than %.0f %% of the %d source images: %s; "
            "expected rare ones. Choose fewer classes, or name the rare ones (model.long_tail_classes, or num_classes "
            "or classes of LongTailStatistics).",
            *(100 * MANY_IMAGES, statistics.num_images, listed),
        )


def _warn_of_left_out(statistics: ClassStatistics, chosen: Sequence[int]) -> None:
    most = int(statistics.images[list(chosen)].max())
    left_out = {c: n for c, n in enumerate(statistics.images) if c not in chosen and 0 < n <= NEARLY_AS_RARE * most}
    if left_out:
        listed = ", ".join(f"{statistics.classes[c]} ({n} images)" for c, n in left_out.items())
        _log.warning(
            "LongTailStatistics: found classes outside of the long tail that are nearly as rare as its most frequent "
            "class (%d images): %s; expected a gap between both. Where one of them looks like a class that is pasted, "
            "the network takes it for that. Name the classes, or let the largest gap choose "
            "(--model.long_tail_classes gap).",
            *(most, listed),
        )


def statistics_table(label_space: LabelSpace, statistics: ClassStatistics, chosen: Sequence[int]) -> Table:
    """All classes as a table for the console, the chosen ones in bold."""
    title = f"Classes in the {statistics.num_images} source label maps"
    rows = []
    for i, (row, color) in enumerate(zip(_rows(statistics, chosen), label_space.palette, strict=True)):
        name, images, image_percent, pixel_percent, tail = row
        bar = Bar(size=100, begin=0, end=image_percent, width=20, color="yellow" if i in chosen else "cyan")
        style, mark = ("bold", tail) if i in chosen else ("", "")
        rows.append(Row(name, (str(images), f"{image_percent:.1f}", bar, f"{pixel_percent:.2f}", mark), color, style))
    return console_table(title, ("class", "images", "%", "", "pixels %", "tail"), rows)


def draw_chart(statistics: ClassStatistics, chosen: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Share of the images that hold each class as bars, the most frequent on top, the chosen ones coloured.

    Returns:
        uint8 (H, W, 3), RGB on white.
    """
    from matplotlib.figure import Figure  # heavy, and most runs do without

    order = np.argsort(statistics.image_frequency, kind="stable")
    percent = 100 * statistics.image_frequency[order]
    figure = Figure(figsize=(6.4, 0.9 + 0.25 * len(order)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    names = [statistics.classes[c] for c in order]
    bars = axes.barh(names, percent, height=0.72, color=[_STRONG if c in chosen else _MUTED for c in order])
    axes.bar_label(bars, [f"{value:.1f} %" for value in percent], padding=4, fontsize=8, color=_INK)
    axes.set_title(f"Images that hold a class, of {statistics.num_images}", loc="left", fontsize=10, color=_INK)
    axes.text(
        1, 1.02, f"long tail (K = {len(chosen)})", transform=axes.transAxes, ha="right", fontsize=9, color=_STRONG
    )
    axes.set_xlim(0, 112)
    axes.set_xticks([])
    axes.margins(y=0.01)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def _rows(statistics: ClassStatistics, chosen: Sequence[int]) -> list[tuple[str, int, float, float, str]]:
    """For each class: name, images, share of the images and of the pixels in percent, whether chosen."""
    shares = (100 * statistics.image_frequency, 100 * statistics.pixel_frequency)
    tail = ["yes" if c in chosen else "no" for c in range(len(statistics.classes))]
    columns = (statistics.classes, statistics.images.tolist(), *(share.tolist() for share in shares), tail)
    return list(zip(*columns, strict=True))


def _write_csv(path: Path, statistics: ClassStatistics, chosen: Sequence[int]) -> None:
    columns = ("class", "images", "images_percent", "pixels_percent", "tail")
    rows = [
        (name, images, f"{image_percent:.4f}", f"{pixel_percent:.4f}", tail)
        for name, images, image_percent, pixel_percent, tail in _rows(statistics, chosen)
    ]
    path.write_text(csv_text(columns, rows), encoding="utf-8")
