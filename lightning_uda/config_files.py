"""Config files: those that the package ships, by their short names, and how any is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

AXES = {
    "--data": "data",
    "--model": "method",
    "--model.network": "network",
    "--model.optimizer": "optimizer",
    "--model.rounds": "rounds",
    "--trainer": "schedule",
}
"""Options that take a part of a config, and the folder of the shipped parts."""

_CONFIG = ("-c", "--config")
_SUFFIX = ".yaml"
_EXPERIMENTS = "experiment/"
_NEAREST = 4


def shipped_configs() -> Path:
    """The folder of the configs: in the package where that was built, else at the top of the repository.

    Raises:
        FileNotFoundError: If it is in neither place.
    """
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{package}: found no folder `configs`, which the package ships. Install it anew.")


def short_names() -> dict[str, Path]:
    """Every shipped config by its short name: its path without `.yaml`, and without the folder of experiments."""
    folder = shipped_configs()
    return {_short(path.relative_to(folder).as_posix()): path for path in sorted(folder.rglob(f"*{_SUFFIX}"))}


def shipped(name: str, folder: str = "") -> Path | None:
    """The shipped config of a name, such as `minicity/dacs` or its path in the repository; `None` if there is none.

    Args:
        name: The name, with or without `.yaml`.
        folder: A folder of parts, such as `network`, whose name may be left out.
    """
    names, short = short_names(), _short(name)
    return names.get(f"{folder}/{short}" if folder else short, names.get(short))


def find_config(name: str, folder: str = "") -> Path:
    """The file of a name, or the shipped config of a name.

    Args:
        name: Path or short name.
        folder: See `shipped`.

    Raises:
        FileNotFoundError: If there is neither; the message has the nearest names.
    """
    if Path(name).is_file():
        return Path(name)
    if (found := shipped(name, folder)) is not None:
        return found
    raise FileNotFoundError(
        f"found no file {name}, and no shipped config of that name. {_nearest(_short(name), folder)}"
        "`lightning-uda configs` lists what is shipped."
    )


def with_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command in which shipped configs are given by their paths, where they were given by name.

    Raises:
        FileNotFoundError: If one names neither a file nor a shipped config.
        ValueError: If a file can't be read as options.
    """
    words = list(arguments)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if not equals and i + 1 < len(words) and option in (*_CONFIG, *AXES):
            words[i + 1] = _path(option, words[i + 1])
        elif equals and option in (*_CONFIG, *AXES):
            words[i] = f"{option}={_path(option, value)}"
    return words


def read_config(path: Path, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """Content of a YAML file, without what it includes.

    Args:
        path: The file.
        load: Reads YAML text.

    Raises:
        ValueError: If it can't be read as YAML.
    """
    try:
        return load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: found bytes that aren't text in UTF-8. Save the file in UTF-8.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it can't be read"
        raise ValueError(f"{path}: can't be read as YAML{where}: {what}.") from error


def _path(option: str, value: str) -> str:
    """The path of a config that an option names; any other value as it is."""
    if value.startswith(("-", "{", "[")) or "\n" in value:  # another option, or content
        return value
    folder = AXES.get(option, "")
    is_path = "/" in value or value.endswith(_SUFFIX)
    if folder and not is_path and (Path(value).is_file() or shipped(f"{folder}/{value}") is None):
        return value  # such as a class
    try:
        path = find_config(value, folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{option}: {error}") from error
    if not isinstance(content := read_config(path), Mapping):
        raise ValueError(
            f"{path}: found {content!r}; expected a mapping of options, such as `trainer: {{max_steps: 1}}`."
        )
    return str(path)


def _short(name: str) -> str:
    return name.removeprefix("configs/").removeprefix(_EXPERIMENTS).removesuffix(_SUFFIX)


def _nearest(name: str, folder: str) -> str:
    names = [short.removeprefix(f"{folder}/") for short in short_names() if short.startswith(folder)]
    within: Iterable[str] = (short for short in names if name in short.split("/"))
    close = [*get_close_matches(name, names, n=_NEAREST), *within]
    chosen = list(dict.fromkeys(close))[:_NEAREST]
    return f"The nearest {'is' if len(chosen) == 1 else 'are'} {', '.join(chosen)}. " if chosen else ""
