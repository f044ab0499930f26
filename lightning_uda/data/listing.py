"""Folders of datasets and list files in them: what is there, and what can be wrong with it."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from lightning_uda.data.dataset import DatasetError


def read_name_list(
    root: Path, split: str, images: Container[str], example: str, name_of: Callable[[str], str] = str
) -> list[str]:
    """Reads a list file: one image name per line; blank lines and lines that begin with # are skipped.

    Args:
        root: Folder of the dataset.
        split: The file, absolute or relative to `root`.
        images: The names there are.
        example: One of them, for messages.
        name_of: Gives the name that a line stands for.

    Returns:
        The names in the file's order.

    Raises:
        DatasetError: If the file is missing or empty, or names images that aren't there or one twice.
    """
    path = root / Path(split).expanduser()
    if not path.is_file():
        lists = sorted(file.relative_to(root).as_posix() for file in root.rglob("*.txt"))
        there = f"{root} holds these .txt files: {some(lists, 10)}." if lists else f"{root} holds no .txt file."
        raise DatasetError(
            f"{path}: list file `split` not found; expected a path, absolute or relative to root. {there}"
        )
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [name_of(line) for line in lines if line and not line.startswith("#")]
    if not names:
        raise DatasetError(f"{path}: the list file names no image; expected one name per line, without extension.")
    if unknown := [name for name in names if name not in images]:
        raise DatasetError(
            f"{path}: {len(unknown)} of {len(names)} names have no image: {some(unknown)}. Expected names like "
            f"{example!r}, relative to the image folder and without extension."
        )
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DatasetError(f"{path}: {len(twice)} names are listed more than once: {some(twice)}. List each once.")
    return names


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` that follows links to folders, but none that leads back to a folder it lies in."""
    for place, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = [sub for sub in subfolders if not _leads_back(Path(place, sub))]
        yield place, subfolders, files


def require_root(root: Path) -> None:
    """Checks that a dataset's folder is there.

    Raises:
        DatasetError: If it isn't; the message lists what is beside it.
    """
    if root.is_dir():
        return
    if root.is_file():
        raise DatasetError(f"{root}: this is a file, expected a folder. Give the folder that holds it as `root`.")
    parent = root.parent
    there = folder_contents(parent) if parent.is_dir() else f"{parent} doesn't exist either."
    raise DatasetError(f"{root}: dataset folder not found. {there} Correct `root`.")


def folder_contents(folder: Path) -> str:
    """Says what a folder holds: "FOLDER holds: a/, b.txt."."""
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return f"{folder} holds: {some(entries, 10)}." if entries else f"{folder} is empty."


def some(names: Sequence[str], count: int = 5) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"


def _leads_back(path: Path) -> bool:
    """Whether a path is a link to a folder that holds one of those on the way to it, other links resolved."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    return any(parent.resolve().is_relative_to(target) for parent in path.parents)


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 if it begins with the mark of that."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: the list file isn't text in UTF-8 ({error}). Save it again with the encoding UTF-8."
        ) from error
