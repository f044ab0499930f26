"""Files that are whole or not there, locks between processes, room on disks, and work in threads."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from rich.console import Console
from rich.progress import track

try:
    import fcntl
except ImportError:  # no such locks on Windows: two builds then do the same work twice, to the same end
    fcntl = None  # type: ignore[assignment]

Item = TypeVar("Item")
Result = TypeVar("Result")

HAS_LOCKS = fcntl is not None
"""Whether `locked` keeps other processes out."""

NOTES_FILE = "notes.txt"
"""Name of the file in a run folder with what a reader of the results should know, a sentence a line."""

LABEL_SPACE_FILE = "label_space.yaml"
"""Name of the file in a run folder with its classes, their colours and subsets."""

RECORD_FILE = "run.yaml"
"""Name of the file in a run folder with what was run: versions, state of the code, sizes of the data sets."""

STOPPED_EARLY = "stopped early: "
"""Beginning of the note of a run that a callback ended before its last step."""

PARTIAL = ".part"
"""Ending of files that are being written."""


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8.

    Raises:
        ValueError: If it isn't in UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: found bytes that aren't text in UTF-8. Save the file in UTF-8, or put a whole copy of it in its "
            "place, or move it away."
        ) from error


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    workers: int | None = None,
    progress: bool = True,
) -> list[Result]:
    """Calls a function for every item in threads, under a progress bar on stderr; the first error stops the rest.

    Args:
        function: What to call; only what leaves Python's global lock runs side by side.
        items: Its arguments.
        title: Text before the bar.
        workers: Threads; `None` takes Python's default for the machine.
        progress: Whether to show the bar.

    Returns:
        The results in the order of the items.
    """
    pool = ThreadPoolExecutor(workers)
    try:
        return list(shown(pool.map(function, items), title, len(items), progress))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes out of a block until it is left.

    The lock belongs to the open file, not to the file's existence: the system takes it from a process that dies, so
    none is ever left behind.

    Args:
        path: Lock file; made if needed, and left where it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        _lock(file)
        yield


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file aside and renames it, so that nobody ever sees half of it.

    Args:
        path: The file.
        write: Writes the content to the path it is given.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on disk, so that they outlast a power cut."""
    if os.name == "nt" and path.is_dir():  # can't be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_file_place(path: Path, name: str) -> None:
    """Checks that a file can be written, before the work is done whose outcome it is to hold. Nothing is left there.

    Args:
        path: The file, which may be there already; folders on the way to it need not be.
        name: How the user knows the path, such as "--output".

    Raises:
        OSError: If a folder or a device is there, or nothing can be written there.
    """
    _require_place(path, path.parent, name)
    if path.is_dir():
        raise IsADirectoryError(
            f"{name}: {path} is a folder; expected a file to write. Give another path, such as {path / 'NAME'}."
        )
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{name}: {path} is a device or a pipe; expected a file to write. Give another path.")


def require_folder_place(path: Path, name: str) -> None:
    """Checks that files can be written in a folder, before the work is done whose outcome they are to hold.

    Args:
        path: The folder, which need not be there yet.
        name: How the user knows the path, such as "--output".

    Raises:
        OSError: If something else is there, or nothing can be written there.
    """
    _require_place(path, path, name)


def _require_place(path: Path, folder: Path, name: str) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(
            f"{name}: {path} can't be written, as {there} is no folder. Give a path in a folder, or a new one."
        )
    try:
        path.exists()  # or its name is too long
        with tempfile.TemporaryDirectory(dir=there, prefix=".", suffix=PARTIAL):
            pass
    except OSError as error:
        raise type(error)(
            f"{name}: {path} can't be written: in {there} nothing can be made ({error.strerror}). Give another path."
        ) from error


def write_beside_older(path: Path, text: str) -> None:
    """Writes a text file; one that is there already is kept as `<stem>.<n><suffix>`.

    Raises:
        OSError: If a folder or a device is there, which is left as it is, or nothing can be written there.
    """
    require_file_place(path, "output")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(free_name(path))
    path.write_text(text, encoding="utf-8")


def require_run_name(name: str, where: str) -> None:
    """Checks that the name of a run is that of a folder below the output folder.

    Args:
        name: The name; slashes make folders in folders.
        where: What it is called in messages.

    Raises:
        ValueError: If it is empty, of several lines, absolute, or leads upwards.
    """
    path = Path(name)
    if not name.strip() or not name.isprintable() or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{where}: found {name!r}; expected a folder below the output folder, such as minicity/dacs.")


def free_name(path: Path, first: int = 1) -> Path:
    """The first of `<stem>.<n><suffix>`, counted from `first`, that isn't there."""
    named = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(first))
    return next(name for name in named if not name.exists())


def versions(folder: Path) -> list[Path]:
    """Run folders `version_<n>` in a folder, in the order of their numbers; none where there is no such folder."""
    numbered = {path: path.name.removeprefix("version_") for path in folder.glob("version_*") if path.is_dir()}
    return sorted((path for path, n in numbered.items() if n.isdecimal()), key=lambda path: int(numbered[path]))


def shown(results: Iterable[Result], title: str, count: int, progress: bool) -> Iterable[Result]:
    """Results under a progress bar on stderr, if wanted."""
    return track(results, title, count, console=Console(stderr=True), transient=True, disable=not progress)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def gigabytes(count: int) -> str:
    """A number of bytes in words: "1.2 GB", "3.4 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _lock(file: IO[str]) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        Console(stderr=True).print(f"Waiting for another process that builds {Path(file.name).parent}", soft_wrap=True)
        fcntl.flock(file, fcntl.LOCK_EX)
