"""Numbers counted over a dataset once and kept in a file, whichever process comes first."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lightning_uda.files import locked, replace_file

CACHE_VARIABLE = "LIGHTNING_UDA_CACHE"
"""Environment variable that names the folder for counts when no `cache_dir` is given."""

Arrays = Mapping[str, npt.NDArray[Any]]


def counts_folder(cache_dir: str | Path | None) -> Path:
    """Folder of counts: the one given, else `$LIGHTNING_UDA_CACHE`, else `~/.cache/lightning_uda`."""
    return Path(cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/lightning_uda").expanduser()


def load_or_count(path: Path, fits: Callable[[Arrays], bool], count: Callable[[], Arrays], what: str) -> Arrays:
    """The arrays of a file, or, where it is missing, damaged or holds something else, counted and kept in it.

    Of several processes one counts, while the others wait for its file. Where none can be written, there is a warning,
    and every process counts for itself.

    Args:
        path: The file, .npz. Its name tells what was counted, so that another dataset or setting has another file.
        fits: Whether arrays read from the file can be those that `count` gives; an error counts as no.
        count: Counts.
        what: Name of the counts, for the warning.
    """
    if (kept := _read(path, fits)) is not None:
        return kept
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        warnings.warn(f"{path.parent}: {what} can't be kept ({error}).", stacklevel=3)
        return count()
    with locked(lock):
        if (kept := _read(path, fits)) is not None:
            return kept
        counted = count()
        try:
            replace_file(path, lambda partial: _write(partial, counted))
        except OSError as error:
            warnings.warn(f"{path}: {what} can't be kept ({error}).", stacklevel=3)
        return counted


def _write(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **cast(Any, arrays))


def _read(path: Path, fits: Callable[[Arrays], bool]) -> Arrays | None:
    try:
        with np.load(path) as file:
            arrays = dict(file)
        return arrays if fits(arrays) else None
    except Exception:  # whatever a damaged file makes numpy raise
        return None
