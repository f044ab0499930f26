"""Scores of cross-validation: the confusion matrices of runs on one fold each, pooled for every city (NTHU)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich
import torch
import yaml
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lightning_uda.datasets.nthu import FOLDS
from lightning_uda.label_spaces import LABEL_SPACES, LabelSpace, get_label_space
from lightning_uda.metrics import FoldScores, iou_per_class, mean_label, read_confusion, score_folds
from lightning_uda.report.runs import ReportError, class_name, init_args
from lightning_uda.report.settings import settings_text

_FILES = ("confusion_val.csv", "confusion_test.csv")
_MEANS = {"mean of folds": "mean_of_folds", "mean of folds, absent as 0": "mean_of_folds_absent_zero"}
"""Kinds of a mean of the folds' means, as the table calls them and as `FoldScores` does."""


@dataclass(frozen=True)
class Fold:
    """One evaluation of a run.

    Attributes:
        folder: The run folder.
        config: Content of its `config.yaml`; empty if there is none.
        dataset: Node of the config that names the dataset scored; empty if there is none.
        confusion: Integer (C, C); rows are ground truth.
        classes: C class names.
    """

    folder: Path
    config: Mapping[str, Any]
    dataset: Mapping[str, Any]
    confusion: Tensor
    classes: tuple[str, ...]

    @property
    def number(self) -> int | None:
        """Number of the fold; `None` if the dataset has no folds."""
        return init_args(self.dataset).get("fold")

    @property
    def set_name(self) -> str:
        """What the fold is one of: the city, else the class of the dataset, else "runs"."""
        return str(init_args(self.dataset).get("city", "")).capitalize() or class_name(self.dataset) or "runs"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the dataset that all its folds have in common; where its files lie is none of them."""
        arguments = {key: value for key, value in init_args(self.dataset).items() if key not in ("root", "fold")}
        return {"class_path": class_name(self.dataset), **arguments}


@dataclass(frozen=True)
class FoldedSet:
    """All folds of one city, or of another set.

    Attributes:
        title: Heading, such as "Rome".
        label_space: The classes.
        names: Names of the M folds, ascending.
        confusions: Integer (M, C, C), one matrix for each fold; rows are ground truth.
        notes: What has to be known about the scores, such as a missing fold.
        settings: How its runs updated their parameters, in words, once for all that share it.
    """

    title: str
    label_space: LabelSpace
    names: tuple[str, ...]
    confusions: Tensor
    notes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def scores(self) -> dict[str, FoldScores]:
        """Scores over all classes as `miou`, and over each subset as `miou_<subset>`, in [0, 1]."""
        space = self.label_space
        subsets = {f"miou_{subset}": space.subset_indices(subset) for subset in space.subsets}
        return {name: score_folds(self.confusions, indices) for name, indices in {"miou": None, **subsets}.items()}


def report_folds(runs: Sequence[Path], output: Path) -> None:
    """Prints the scores of folds, one column for each city, writes them as CSV, and prints the file's path last.

    Args:
        runs: Run folders, as `load_folds` takes them.
        output: The file to write, as `write_folds` takes it.

    Raises:
        ReportError: As `load_folds`.
    """
    sets = load_folds(runs)
    console = rich.get_console()
    console.print(folds_table(sets))
    for note in (note for one in sets for note in one.notes):
        console.print(note, style="yellow", highlight=False, markup=False)
    for line in dict.fromkeys(line for one in sets for line in one.settings):
        console.print(line, style="dim", highlight=False, markup=False)
    console.print(str(write_folds(sets, output)), soft_wrap=True, highlight=False, markup=False)


def load_folds(folders: Sequence[Path]) -> list[FoldedSet]:
    """Reads the confusion matrices of runs and puts together those of one city.

    Args:
        folders: One for each fold: a run folder with `confusion_val.csv` (or `confusion_test.csv`), or a folder of
            `version_<k>` folders, of which the latest with such a file is taken.

    Returns:
        The sets, in the order in which they first occur.

    Raises:
        ReportError: If a folder holds no confusion matrix, classes differ, a fold comes twice, or folds of one city
            are of different shuffles.
    """
    if not folders:
        raise ReportError("Found no run folder; give one for each fold, such as runs/nthu_rome_0 runs/nthu_rome_1.")
    folds = [_load_fold(Path(folder)) for folder in folders]
    for fold in folds[1:]:
        if fold.classes != folds[0].classes:
            raise ReportError(
                f"The runs have different label spaces: {folds[0].folder} has {len(folds[0].classes)} classes, "
                f"{fold.folder} has {len(fold.classes)}; they differ in "
                f"{sorted(set(folds[0].classes) ^ set(fold.classes)) or 'their order'}. Score them separately."
            )
    return [
        _folded_set(name, [fold for fold in folds if fold.set_name == name])
        for name in dict.fromkeys(fold.set_name for fold in folds)
    ]


def folds_table(sets: Sequence[FoldedSet]) -> Table:
    """IoU per class of the pooled matrices, their means, and the means of the folds' means; in percent."""
    table = Table(title="IoU in %, folds pooled", title_style="bold", title_justify="left", box=HORIZONTALS)
    table.add_column("class", no_wrap=True)
    for one in sets:
        table.add_column(f"{one.title} ({len(one.names)} fold{'s' * (len(one.names) != 1)})", justify="right")
    scores, space = [one.scores() for one in sets], sets[0].label_space
    for i, (name, color) in enumerate(zip(space.classes, space.palette, strict=True)):
        swatch = Text.assemble(("██", "rgb({},{},{})".format(*color)), " ", name)
        table.add_row(swatch, *(_percent(float(score["miou"].iou[i])) for score in scores))
    for mean in scores[0]:
        table.add_section()
        table.add_row(mean_label(mean), *(_percent(score[mean].miou) for score in scores), style="bold")
        for label, kind in _MEANS.items():
            table.add_row(f"  {label}", *(_percent(getattr(score[mean], kind)) for score in scores))
    return table


def write_folds(sets: Sequence[FoldedSet], output: Path) -> Path:
    """Writes the scores as CSV, in percent: of each set a row for each fold, then the pooled one and the means.

    Columns are `set`, `fold`, `miou`, `miou_<subset>` and `iou_<class>`; `fold` is the fold's name, `pooled`,
    `mean_of_folds` or `mean_of_folds_absent_zero`. A cell is empty where there is nothing to measure.

    Args:
        sets: At least one.
        output: The file; one that is there already is kept as `<stem>.<n>.csv`.

    Returns:
        Path of the file.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        output.rename(_free_name(output))
    means = list(sets[0].scores())
    classes = sets[0].label_space.classes
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "fold", *means, *(f"iou_{name}" for name in classes)])
        for one in sets:
            writer.writerows(_rows(one))
    return output


def _rows(one: FoldedSet) -> list[list[str]]:
    scores = one.scores()
    rows: list[list[str]] = []
    for i, name in enumerate(one.names):
        ious = iou_per_class(one.confusions[i]).tolist()
        rows.append([name, *(_cell(score.fold_mious[i]) for score in scores.values()), *map(_cell, ious)])
    pooled = [score.miou for score in scores.values()]
    rows.append(["pooled", *map(_cell, pooled), *map(_cell, scores["miou"].iou.tolist())])
    rows += [[kind, *(_cell(getattr(score, kind)) for score in scores.values())] for kind in _MEANS.values()]
    width = 1 + len(scores) + len(one.label_space.classes)
    return [[one.title, *row, *[""] * (width - len(row))] for row in rows]


def _load_fold(folder: Path) -> Fold:
    file = _confusion_file(folder)
    try:
        confusion, classes = read_confusion(file)
    except ValueError as error:
        raise ReportError(str(error)) from error
    config_file = file.with_name("config.yaml")
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    data = init_args(config.get("data"))
    dataset = data.get("val") if file.name == _FILES[0] else data.get("test") or data.get("val")
    return Fold(file.parent, config, dataset or {}, confusion, tuple(classes))


def _confusion_file(folder: Path) -> Path:
    """That of the folder itself, else of the latest version in it that has one."""
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder; expected a run folder, such as runs/nthu_rome_0.")
    versions = [path for path in folder.glob("version_*") if path.name[8:].isdigit()]
    latest_first = sorted(versions, key=lambda path: -int(path.name[8:]))
    for place in (folder, *latest_first):
        for name in _FILES:
            if (place / name).is_file():
                return place / name
    raise ReportError(
        f"Run folder {folder} holds no {' and no '.join(_FILES)}. Add `--trainer.callbacks+=ConfusionWriter` to the "
        "command of the run (or validate its checkpoint so), or give another folder."
    )


def _folded_set(title: str, folds: Sequence[Fold]) -> FoldedSet:
    _require_distinct(title, folds)
    ordered = sorted(folds, key=lambda fold: -1 if fold.number is None else fold.number)
    return FoldedSet(
        title=title,
        label_space=_label_space(ordered[0]),
        names=tuple(_short_name(fold) if fold.number is None else str(fold.number) for fold in ordered),
        confusions=torch.stack([fold.confusion for fold in ordered]),
        notes=(*_missing(title, ordered), *(note for fold in ordered for note in _adapted_to_scored(fold))),
        settings=tuple(dict.fromkeys(settings_text(fold.config) for fold in ordered)),
    )


def _require_distinct(title: str, folds: Sequence[Fold]) -> None:
    """Refuses runs that score an image twice, as far as their configs tell."""
    for i, fold in enumerate(folds):
        for other in folds[:i]:
            if fold.folder.resolve() == other.folder.resolve():
                raise ReportError(f"{fold.folder} is given twice; give each run once.")
            if not fold.dataset or not other.dataset:
                continue
            same_settings = fold.settings == other.settings
            if same_settings and fold.number == other.number:
                what = "the same images" if fold.number is None else f"fold {fold.number}"
                raise ReportError(
                    f"{title}: {other.folder} and {fold.folder} both score {what}; expected each fold once. Leave one "
                    "out; compare methods in calls of their own."
                )
            if not same_settings and (fold.number is not None or other.number is not None):
                differing = sorted(
                    key
                    for key in {*fold.settings, *other.settings}
                    if fold.settings.get(key) != other.settings.get(key)
                )
                raise ReportError(
                    f"{title}: {other.folder} and {fold.folder} aren't folds of one division: "
                    + "; ".join(f"{key}: {other.settings.get(key)} and {fold.settings.get(key)}" for key in differing)
                    + ". Score them separately."
                )


def _missing(title: str, folds: Sequence[Fold]) -> list[str]:
    missing = sorted(set(range(FOLDS)) - {fold.number for fold in folds if fold.number is not None})
    if class_name(folds[0].dataset) != "NTHU" or not missing or len(missing) == FOLDS:
        return []
    return [f"{title}: {FOLDS - len(missing)} of {FOLDS} folds; missing: {', '.join(map(str, missing))}."]


def _adapted_to_scored(fold: Fold) -> list[str]:
    """A note if the run's target holds the images that it scores: the target's fold was left as it was."""
    target = init_args(init_args(fold.config.get("data")).get("target"))
    scored = init_args(fold.dataset)
    if fold.number is None or target.get("split") != "adapt" or target.get("city") != scored.get("city"):
        return []
    if (target.get("fold"), target.get("fold_seed")) == (fold.number, scored.get("fold_seed")):
        return []
    return [
        f"{fold.folder}: the config's target is the images outside of fold {target.get('fold')}, the scores are of "
        f"fold {fold.number}: if the target was trained on, scored images were seen in training."
    ]


def _label_space(fold: Fold) -> LabelSpace:
    """That of the run's config, else the built-in one of the same classes, else one without subsets."""
    name = init_args(fold.config.get("data")).get("label_space")
    try:
        known = [*([get_label_space(str(name))] if name else []), *LABEL_SPACES.values()]
    except ValueError:  # a file that isn't here any more
        known = list(LABEL_SPACES.values())
    greys = ((128, 128, 128),) * len(fold.classes)
    plain = LabelSpace("classes of the runs", fold.classes, greys)
    return next((space for space in known if space.classes == fold.classes), plain)


def _short_name(fold: Fold) -> str:
    return "/".join(fold.folder.parts[-2:])


def _free_name(path: Path) -> Path:
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return older


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"


def _cell(value: float) -> str:
    return "" if value != value else f"{100 * value:.4f}"
