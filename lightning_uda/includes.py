"""Config files that take over others: the key `include`, anywhere in a YAML file that the command line reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from lightning_uda.config_files import read_config, shipped
from lightning_uda.errors import MendableError

_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
"""Keys of a part that is a class; the last is the parser's, for arguments that the constructor doesn't name."""


def allow_includes() -> None:
    """Lets YAML files of the command line's parser include others; `lightning_uda.cli` calls it when it is imported.

    In `include: FILE`, or a list of files, a path is relative to the file that it stands in; where no file has it, the
    short name of a shipped config will do, such as `minicity/dacs`. What stands beside the key goes over what is
    included, mapping by mapping; a part of another class, a list or `null` replaces what was there, but a list under
    the key's name with a plus sign, such as `callbacks+`, goes behind it.
    Plain paths in included files are taken relative to the file that includes, as those of one folder.
    """
    load = get_loader("yaml")

    def load_with_includes(content: str) -> Any:
        here = Path(os.getcwd())  # the parser changes to the folder of each file it reads
        found = resolve(load(content), here, load)
        require_class_keys(found)
        return found

    set_loader("yaml", load_with_includes, (yaml.YAMLError,))


def resolve(node: Any, folder: Path, load: Callable[[str], Any], above: tuple[Path, ...] = ()) -> Any:
    """What a part of a config file is once everything is included.

    Args:
        node: Content of the file.
        folder: What paths are relative to.
        load: Reads YAML text.
        above: The files that are being included.

    Raises:
        ValueError: If a file that is to be included is missing or includes itself.
    """
    if isinstance(node, list):
        return [resolve(item, folder, load, above) for item in node]
    if not isinstance(node, Mapping):
        return node
    merged: Any = {}
    given = node.get("include", [])
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"include: found {given!r} in a file of {folder}; expected the path of a file, or a list of paths."
        )
    for name in names:
        path = (folder / name).resolve()
        if not path.is_file():
            path = shipped(name) or path
        if path in above or not path.is_file():
            problem = "it includes itself" if path in above else "found no such file, and no shipped config of the name"
            raise ValueError(f"include: {name}: {problem}. Paths are relative to the file that includes: {folder}.")
        content = resolve(read_config(path, load), path.parent, load, (*above, path))
        merged = overlay(merged, content)
    own = {key: resolve(value, folder, load, above) for key, value in node.items() if key != "include"}
    return overlay(merged, own)


def require_class_keys(node: Any, place: str = "") -> None:
    """Checks that each class has a name, and nothing stands beside it but its arguments, which are below `init_args`.

    Args:
        node: Content of a file, or of a part of it.
        place: Names on the way to it, such as "model.network".

    Raises:
        MendableError: If that isn't so. (After a ValueError the parser would go on to the next reading.)
    """
    if isinstance(node, list):
        for item in node:
            require_class_keys(item, place)
    if not isinstance(node, Mapping):
        return
    where, name = f"{place}: " if place else "", node.get("class_path", "none")
    if not isinstance(name, str) or not name.strip():
        raise MendableError(f"{where}found class_path: {name!r}; expected the name of a class.")
    beside = [key for key in node if key not in _OF_A_CLASS] if "class_path" in node else []
    if beside:
        raise MendableError(
            f"{where}found {beside[0]!r} beside class_path: {name}; expected init_args alone, below which the "
            "arguments of a class stand."
        )
    for key, value in node.items():
        require_class_keys(value, place if key == "init_args" else f"{place}.{key}".lstrip("."))


def overlay(base: Any, over: Any) -> Any:
    """`over` on `base`: mappings are merged key by key, unless they name different classes; all else is replaced.

    What `over` has under a key that ends in a plus sign goes behind the list that `base` has under the key with or
    without it.
    """
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if "class_path" in over and over["class_path"] != base.get("class_path", over["class_path"]):
        return over
    merged = dict(base)
    for key, value in over.items():
        plain = key.removesuffix("+") if isinstance(key, str) else key  # a raw id may be a key too
        if key != plain and (base_key := plain if plain in base else key) in base:
            merged[base_key] = [*_elements(base[base_key]), *_elements(value)]
        else:
            merged[key] = overlay(base[key], value) if key in base else value
    return merged


def _elements(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
