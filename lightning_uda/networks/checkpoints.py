"""Starting a network from a checkpoint of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning_uda.files import versions
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.networks.weights import ClassRows, copy_weights, read_file, tensors_of


class Start(NamedTuple):
    """What is to be known of the checkpoint that a network started from.

    Attributes:
        note: A sentence for the run's report.
        random_weights: Whether the run that wrote it began with random weights, or one that it started from did.
    """

    note: str
    random_weights: bool


def start_from(network: SegmentationNetwork, path: str | Path, label_space: LabelSpace) -> Start:
    """Copies all weights and statistics of the student of an earlier run; of what terms attached, what it has.

    Where that run had other classes, among them all of this one, the classifiers keep the rows of this run's classes,
    picked by name: 16 of Cityscapes' 19 for SYNTHIA.

    Args:
        network: Receives the weights.
        path: A checkpoint, or a run folder (see `find_checkpoint`); a file that names no classes has to fit as it is.
        label_space: The classes of this run.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it lacks classes of this run, or the network doesn't declare `class_rows` where it has others.
        WeightsError: If it can't be read, isn't finite, or doesn't fit the network as a whole.
    """
    path = find_checkpoint(Path(path))
    content = read_file(path)
    found, step = content.get("classes"), content.get("global_step")
    rows = _rows_of(network, path, found, label_space) if isinstance(found, list) else None
    copy_weights(
        network, tensors_of(content, path), source=path, min_share=1.0, optional_prefixes=("attached.",), rows=rows
    )
    note = "weights at the start: those of " + (path.name if step is None else f"a checkpoint of step {step}")
    if rows is not None:
        note += f", of classifiers the rows of {len(rows.picked)} of its {rows.of} classes"
    random_weights = bool(content.get("random_weights"))
    return Start(note + ", whose run began with random ones" * random_weights, random_weights)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path stands for: a file itself; of a run folder the last step of the latest version.

    Raises:
        FileNotFoundError: If there is none.
    """
    if path.is_file():
        return path
    candidates = [folder / "checkpoints" / "last.ckpt" for folder in (path, *reversed(versions(path)))]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path}: found no such file, and no checkpoints/last.ckpt in it or its versions. Train the run to start "
            "from there first (with a ModelCheckpoint named `last`), or give a checkpoint file as model.init_from."
        )
    return found


def _rows_of(network: SegmentationNetwork, path: Path, found: list[str], label_space: LabelSpace) -> ClassRows | None:
    """Rows of the run's classes in a checkpoint of these classes; `None` if they are the same."""
    wanted = list(label_space.classes)
    if found == wanted:
        return None
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(
            f"{path}: trained on {len(found)} classes {found}, this run has {len(wanted)} {wanted} (label space "
            f"{label_space.name!r}), of which it lacks {missing}. Give a checkpoint that has all classes of this run "
            "as model.init_from."
        )
    if not network.class_rows:
        raise ValueError(
            f"{path}: trained on {len(found)} classes, of which this run has {len(wanted)}, but "
            f"{type(network).__name__} doesn't say which of its tensors have a row for each class. Declare them as its "
            "`class_rows`, or give a checkpoint of this label space as model.init_from."
        )
    return ClassRows(network.class_rows, tuple(map(found.index, wanted)), len(found))
