"""The files of a run folder, as reports read them: one that is damaged is refused by its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from lightning_uda.config_files import read_config as read_yaml
from lightning_uda.files import LABEL_SPACE_FILE, NOTES_FILE, RECORD_FILE, read_text
from lightning_uda.label_spaces import LABEL_SPACES, LabelSpace, get_label_space
from lightning_uda.metrics import find_confusions, read_confusion
from lightning_uda.tables import WHOLE_COPY, read_log, read_rows, require_numbers

CONFIG_FILE, METRICS_FILE = "config.yaml", "metrics.csv"

Content = TypeVar("Content")
Matrices = dict[int, dict[str | None, Tensor]]
"""Confusion matrices, int64 (C, C), by step and scope."""


class ReportError(ValueError):
    """A report can't be made of these runs; the message names the folder or file and the fix."""


def read_config(run: Path) -> dict[str, Any]:
    """Content of `config.yaml`; empty if there is none.

    Raises:
        ReportError: If a value that reports go by can't be one of a run.
    """
    file = run / CONFIG_FILE
    config = _mapping(file, trainer=dict, ckpt_path=str)
    _require_kinds(file, config.get("trainer") or {}, "trainer.", log_every_n_steps=int)
    return config


def read_record(run: Path) -> dict[str, Any]:
    """Content of `run.yaml`; empty if there is none.

    Raises:
        ReportError: If it isn't what `RunRecord` writes.
    """
    return _mapping(run / RECORD_FILE, versions=dict, git=str, data=dict)


def read_notes(run: Path) -> list[str]:
    """Lines of `notes.txt`; none if there is no such file.

    Raises:
        ReportError: If it isn't text.
    """
    return (_read(run / NOTES_FILE, read_text) or "").splitlines()


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Rows of `metrics.csv`, each with its `step`; none if there is no such file.

    Raises:
        ReportError: If it is no table of numbers.
    """
    return _read(run / METRICS_FILE, _numbers) or []


def read_extremes(file: Path) -> list[dict[str, str]]:
    """Rows of a table of the worst and the best images, with `picture`, `image` and `miou`.

    Raises:
        ReportError: If it is no such table.
    """
    return _read(file, lambda path: read_rows(path, {"picture": str, "image": str, "miou": float})) or []


def read_matrices(run: Path) -> tuple[str, Matrices, list[str]]:
    """Stage of the evaluations, their matrices, and class names; of a step the latest evaluation counts.

    Raises:
        ReportError: If a file holds no matrix, or one of other classes.
    """
    files = find_confusions(run)
    stage = "val" if any(file.stage == "val" for file in files) else "test"
    matrices: Matrices = {}
    classes: list[str] = []
    for file in (file for file in files if file.stage == stage):
        if (found := _read(file.path, read_confusion)) is None:
            continue
        if classes and found[1] != classes:
            raise ReportError(
                f"{file.path}: found the classes {found[1]}; expected those of the matrices before, {classes}. Move it "
                "away."
            )
        matrices.setdefault(file.step, {})[file.scope], classes = found
    return stage, matrices, classes


def read_label_space(run: Path, named: object, classes: Sequence[str]) -> LabelSpace:
    """That in the run's folder, else the one that its config names, else a grey one without subsets.

    A built-in one of the same classes stands in only where there is no word of another: its colours may differ from
    those of the run's pictures.

    Raises:
        ReportError: If `label_space.yaml` holds no label space.
    """
    own = _read(run / LABEL_SPACE_FILE, lambda path: get_label_space(str(path)))
    known = [] if own is None else [own]
    with suppress(ValueError):  # a file that isn't here any more, or holds something else by now
        known += [get_label_space(str(named))] if named else LABEL_SPACES.values()
    plain = LabelSpace("classes of the run", tuple(classes), ((128, 128, 128),) * len(classes))
    return next((space for space in known if list(space.classes) == list(classes)), plain)


def has_trained(run: Path) -> bool:
    """Whether a run trained, rather than evaluated a checkpoint: only then it has notes, and losses in its metrics."""
    if (run / NOTES_FILE).is_file():
        return True
    metrics = run / METRICS_FILE
    if not metrics.is_file():
        return False
    with metrics.open(encoding="utf-8", errors="replace") as file:
        return "train/" in file.readline()


def _read(file: Path, read: Callable[[Path], Content]) -> Content | None:
    """What a function reads of a file; `None` if there is no such file."""
    if not file.is_file():
        return None
    try:
        return read(file)
    except ValueError as error:
        named = str(error) if str(file) in str(error) else f"{file}: {error}"
        raise ReportError(named) from error


def _numbers(file: Path) -> list[dict[str, str]]:
    columns, rows = read_log(file)
    require_numbers(file, columns, rows)
    return rows


def _mapping(file: Path, **kinds: type) -> dict[str, Any]:
    """Content of a YAML file whose values, where they aren't null, are of these kinds."""
    content = _read(file, read_yaml)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ReportError(f"{file}: found {content!r}; expected a mapping. {WHOLE_COPY}")
    _require_kinds(file, content, "", **kinds)
    return content


def _require_kinds(file: Path, content: Mapping[str, Any], within: str, **kinds: type) -> None:
    for name, kind in kinds.items():
        value = content.get(name)
        if value is not None and not isinstance(value, kind):
            raise ReportError(f"{file}: found {within}{name}: {value!r}; expected {_KINDS[kind]}. {WHOLE_COPY}")


_KINDS: Mapping[type, str] = {dict: "a mapping", str: "a text", int: "a whole number"}
