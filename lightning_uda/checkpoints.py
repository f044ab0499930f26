"""Checkpoint files that survive what kills a run: whole or not there, with the generation before, checked when read."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError

from lightning_uda.files import PARTIAL, flush, free_bytes, gigabytes

CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints in a run folder."""

SUFFIX = ".ckpt"
_PREVIOUS = ".previous"
_MARK = b"lightning_uda sha256"
_TRAILER = len(_MARK) + hashlib.sha256().digest_size
_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A file can't be used as a checkpoint; the message names it, what is wrong and the fix."""


class Found(NamedTuple):
    """A checkpoint that a run can go on from.

    Attributes:
        path: The file.
        step: Optimiser steps done.
    """

    path: Path
    step: int


class _Entry(NamedTuple):
    """What a checkpoint holds under a name.

    Attributes:
        expected: What it has to be, in words.
        fits: Whether a value is that.
    """

    expected: str
    fits: Callable[[Any], bool]


def _are_mappings(values: Any, *names: str) -> bool:
    """Whether these are mappings that have all of these names."""
    return isinstance(values, list) and all(isinstance(one, Mapping) and one.keys() >= set(names) for one in values)


def _is_by_name(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, kind) for one in value.values())


def _is_optimizer(state: Any) -> bool:
    return _is_by_name(state["state"], Mapping) and _are_mappings(state["param_groups"], "params")


_OF_A_RUN = {
    "state_dict": _Entry("tensors by their names", lambda found: _is_by_name(found, torch.Tensor)),
    "global_step": _Entry("a number of steps", lambda found: type(found) is int and found >= 0),
    "pytorch-lightning_version": _Entry(
        "a version of Lightning", lambda found: isinstance(found, str) and re.match(r"\d+(\.\d+)+", found) is not None
    ),
}
_OF_SOME = {
    "loops": _Entry("the state of each loop by its name", lambda found: _is_by_name(found, Mapping)),
    "callbacks": _Entry("the state of each callback by its name", lambda found: isinstance(found, Mapping)),
}
_TO_RESUME = {
    "optimizer_states": _Entry(
        "a list with the state and groups of each optimiser",
        lambda found: _are_mappings(found, "state", "param_groups") and all(map(_is_optimizer, found)),
    ),
    "lr_schedulers": _Entry("a list with the state of each schedule", _are_mappings),
    "loops": _Entry(
        "the state of each loop by its name, fit_loop among them",
        lambda found: _is_by_name(found, Mapping) and "fit_loop" in found,
    ),
}


def previous_of(path: Path) -> Path:
    """Where the file is kept that stood at `path` before: `last.previous.ckpt` of `last.ckpt`."""
    return path.with_name(f"{path.stem}{_PREVIOUS}{path.suffix}")


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a whole one is on disk at every moment, whatever ends the program or the machine.

    It is written beside its place, flushed to disk, and renamed. One that stands there already is kept as
    `previous_of(path)`. No other folder is written to.

    Args:
        content: What `torch.load` can read with `weights_only=True`: tensors, numbers, strings and containers of them.
        path: The file; its folder is made if it isn't there.

    Raises:
        OSError: If it can't be written, as on a full disk; the one that stands at `path` is left as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("w+b") as file:
            torch.save(content, file)
            file.seek(0)
            checksum = hashlib.file_digest(file, "sha256").digest()
            file.write(_MARK + checksum)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch says something of its own of an error of the system
        partial.unlink(missing_ok=True)
        reason = error if isinstance(error, OSError) else error.__context__ or error
        kept = f" The one before, {path}, is whole." if path.exists() else ""
        raise OSError(
            f"{path}: the checkpoint can't be written ({reason}); {gigabytes(free_bytes(path.parent))} are free "
            f"there. Make room, or give another --output.{kept}"
        ) from error
    if path.exists():
        path.replace(previous_of(path))
    partial.replace(path)
    flush(path.parent)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint, without running any code that it may hold, and after comparing its checksums.

    Args:
        path: The file.
        map_location: As in `torch.load`.

    Raises:
        CheckpointError: If it is damaged, or no checkpoint of a run.
    """
    require_whole(path)
    return _load(path, map_location=map_location)


def view_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, whose tensors are read from the file when they are looked at; see `read_checkpoint`.

    Raises:
        CheckpointError: If it is no checkpoint of a run. Checksums aren't compared.
    """
    return _load(path, map_location="cpu", mmap=True)


def require_checkpoint(path: Path, to_resume: bool = False) -> Found:
    """Checks that a file is a whole checkpoint of a run, and gives its step.

    Args:
        path: The file.
        to_resume: Whether a run is to go on from it, which it can't from weights alone.

    Raises:
        CheckpointError: If it isn't.
    """
    require_whole(path)
    content = view_checkpoint(path)
    if to_resume:
        require_resumable(content, path)
    return Found(path, content["global_step"])


def require_content(content: Any, path: str | Path) -> None:
    """Checks that what a file holds is a checkpoint of a run.

    Raises:
        CheckpointError: If it isn't; names what is missing or of another kind.
    """
    if lacking := sorted(_OF_A_RUN.keys() - set(content if isinstance(content, Mapping) else ())):
        raise CheckpointError(
            f"{path}: no checkpoint of a run (it lacks {lacking}). Give one from a run's `{CHECKPOINTS}` folder; "
            "published weights go to --model.network.weights."
        )
    _require_entries(content, _OF_A_RUN, path)
    _require_entries(content, {name: entry for name, entry in _OF_SOME.items() if name in content}, path)


def require_resumable(content: Mapping[str, Any], path: str | Path) -> None:
    """Checks that a checkpoint holds what a run needs to go on: the optimiser, the schedule and the loops.

    Raises:
        CheckpointError: If it doesn't.
    """
    if lacking := sorted(_TO_RESUME.keys() - content.keys()):
        raise CheckpointError(
            f"{path}: no run can go on from it, as it holds weights alone (it lacks {lacking}). Give one that was "
            "saved without `save_weights_only`, or start anew from its weights: --model.init_from instead of "
            "--ckpt_path."
        )
    _require_entries(content, _TO_RESUME, path)


def _require_entries(content: Mapping[str, Any], entries: Mapping[str, _Entry], path: str | Path) -> None:
    for name, entry in entries.items():
        if not entry.fits(content[name]):
            raise CheckpointError(
                f"{path}: no checkpoint of a run: found {name}: {_shown(content[name])}, expected {entry.expected}. "
                f"What wrote it made a mistake; give another one from a run's `{CHECKPOINTS}` folder."
            )


def _shown(value: Any) -> str:
    """A value in a few words."""
    text = "null" if value is None else repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:60]}..."


def require_whole(path: Path) -> None:
    """Checks that a checkpoint file is as it was written.

    Raises:
        CheckpointError: If it isn't; the message names the one before, where that is whole.
    """
    if damage := damage_of(path):
        before = previous_of(path)
        usable = before.is_file() and damage_of(before) is None
        fix = f"The one before is whole: {before}." if usable else "Give another one of a run."
        raise CheckpointError(f"{path}: can't be read as a checkpoint: {damage}. {fix}")


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in a few words; `None` if it is as it was written.

    `write_checkpoint` puts a SHA-256 behind the archive that torch writes, which torch and zip programs pass over.
    Files of other programs lack it; the CRC-32 of each member, which torch doesn't compare, stands in.
    """
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END) - _TRAILER
        file.seek(max(length, 0))
        trailer = file.read()
        file.seek(0)
        if trailer.startswith(_MARK):
            differs = _sha256(file, length) != trailer.removeprefix(_MARK)
            return "it isn't as it was written (its checksum differs)" if differs else None
        try:
            with zipfile.ZipFile(file) as archive:
                member = archive.testzip()
        except Exception as error:  # damaged archives raise errors of many kinds
            return f"it is cut short, or no file of torch ({error})"
        return None if member is None else f"it isn't as it was written (the checksum of {member} differs)"


def _sha256(file: BinaryIO, length: int) -> bytes:
    """Checksum of the first bytes of a file."""
    checksum = hashlib.sha256()
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        checksum.update(block)
        length -= len(block)
    return checksum.digest()


def newest_checkpoint(folder: Path, to_resume: bool = True) -> Found | None:
    """The whole checkpoint of the highest step in a folder.

    Damaged ones are named in a warning, and passed over.

    Args:
        folder: Folder of checkpoints; need not exist.
        to_resume: Whether only those count that a run can go on from, not those of weights alone.
    """
    found: list[tuple[int, float, Path]] = []
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            content = view_checkpoint(path)
            if to_resume and content.keys() >= _TO_RESUME.keys():
                require_resumable(content, path)
        except CheckpointError as error:
            _warn_of(path, damage_of(path) or str(error).removeprefix(f"{path}: "))
        else:
            if not to_resume or content.keys() >= _TO_RESUME.keys():
                found.append((content["global_step"], path.stat().st_mtime, path))
    for step, _, path in sorted(found, reverse=True):
        if damage := damage_of(path):
            _warn_of(path, damage)
        else:
            return Found(path, step)
    return None


def reason_of(error: Exception) -> str:
    """Why torch couldn't read a file, in a few words; its advice, to let the file run code, is left out."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it needs the code of {code[1]}, which isn't run"
    says_what = isinstance(error, RuntimeError | OSError | SafetensorError)  # others are of what it wasn't written for
    return str(error).strip().split("\n")[0] if says_what else "it is damaged, or no file of torch"


def explained(path: str | Path, error: Exception) -> CheckpointError:
    """What went wrong when torch read a checkpoint, in one sentence."""
    return CheckpointError(
        f"{path}: can't be read as a checkpoint ({type(error).__name__}: {reason_of(error)}). Give one of a run."
    )


def _load(path: Path, **options: Any) -> dict[str, Any]:
    try:
        content = torch.load(path, weights_only=True, **options)
    except Exception as error:  # damaged files raise errors of many kinds
        raise explained(path, error) from error
    require_content(content, path)
    return dict(content)


def _warn_of(path: Path, damage: str) -> None:
    _log.warning("%s is passed over: %s", path, damage)
