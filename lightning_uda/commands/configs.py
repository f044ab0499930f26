"""`lightning-uda configs`: the configs that the package ships, a line each, and copies of them."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from lightning_uda import __version__
from lightning_uda.commands.options import CommandParser
from lightning_uda.config_files import AXES, find_config, read_config, short_names
from lightning_uda.files import require_file_place

_FIRST = ("demo", "minicity", "folders")
_COMMANDS = {"grids": "lightning-uda grid", "sweeps": "lightning-uda sweep"}
_PARTS = {folder: option for option, folder in AXES.items()}
_COPY = "copy"


def show_configs(arguments: list[str]) -> None:
    """Lists the shipped configs, or copies one.

    Args:
        arguments: `[TEXT]`, to list those with a text in their names, or `copy NAME [FILE]`.

    Raises:
        FileExistsError: If a copy would replace a file.
        FileNotFoundError: If no config has the name.
    """
    parser = CommandParser(
        prog="lightning-uda configs",
        usage="lightning-uda configs [TEXT]\n       lightning-uda configs copy NAME [FILE]",
        description="Lists the configs that the package ships, those with TEXT in their names, or copies one, with all "
        "that it includes, to change it. A copy replaces no file; without FILE it gets the last part of the name.",
        epilog="Commands take a name in place of a file, in any folder: `lightning-uda fit --config minicity/dacs`.",
    )
    parser.add_argument("words", nargs="*", metavar="TEXT", help="Part of the names, or `copy` and what to copy.")
    words = parser.parse_args(arguments).words
    if words[:1] == [_COPY]:
        if len(words) not in (2, 3):
            parser.error(f"found {len(words) - 1} words after `copy`; expected NAME, or NAME and FILE.")
        print(copy_config(words[1], Path(words[2]) if len(words) == 3 else None))
    elif len(words) > 1:
        parser.error(f"found {words}; expected one TEXT, or `copy NAME FILE`.")
    else:
        print(listing(words[0] if words else ""))


def listing(text: str = "") -> str:
    """The shipped configs with a text in their names, a line each, by folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    names = {name: path for name, path in short_names().items() if text in name}
    if not names:
        raise FileNotFoundError(f"configs: found no name with {text!r} in it. `lightning-uda configs` lists all.")
    width = max(map(len, names)) + 2
    blocks = []
    for folder, found in groupby(sorted(names, key=_order), key=_folder):
        lines = [f"  {name:<{width}}{said_of(names[name])}" for name in found]
        blocks.append("\n".join([_heading(folder), *lines]))
    return "\n\n".join(blocks)


def copy_config(name: str, path: Path | None) -> str:
    """Copies a shipped config with what it includes.

    Args:
        name: Its short name.
        path: The copy; `None` for one of the last part of the name in the current folder.

    Returns:
        A sentence about the copy.

    Raises:
        FileNotFoundError: If no config has the name.
        OSError: If there is a file already, or none can be written there.
    """
    source = find_config(name)
    short = next((short for short, shipped in short_names().items() if shipped == source), name)
    path = Path(source.name) if path is None else path / source.name if path.is_dir() else path
    text = source.read_text(encoding="utf-8")
    if re.search(r"^[^#]*\binclude:", text, re.MULTILINE):
        text = _whole(source, short)
    require_file_place(path, "configs copy")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise FileExistsError(f"configs copy: found {path}. Move it away, or give another FILE.") from error
    return f"{short} is copied to {path}. It is used by: {_use(_folder(short))} {path}"


def said_of(path: Path) -> str:
    """The first sentence of a config file's comment at its head."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(lines), maxsplit=1)[0]


def _whole(source: Path, name: str) -> str:
    import yaml

    from lightning_uda.includes import resolve  # brings jsonargparse, which a listing does without

    content = resolve(read_config(source), source.parent, yaml.safe_load)
    dumped = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    return f"# {said_of(source)}\n# {name} of lightning-uda {__version__}, with all that it includes.\n{dumped}"


def _folder(name: str) -> str:
    return name.partition("/")[0]


def _order(name: str) -> tuple[int, str, str]:
    folder = _folder(name)
    group = 3 if folder in _COMMANDS else 2 if folder in _PARTS else 1
    return (_FIRST.index(folder) - len(_FIRST) if folder in _FIRST else group, folder, name)


def _use(folder: str) -> str:
    option = _PARTS.get(folder, "--config")
    return _COMMANDS.get(folder, f"lightning-uda fit {option}")


def _heading(folder: str) -> str:
    """What the configs of a folder are for."""
    about = short_names().get(f"data/{folder}")
    what = f"{_use(folder)} NAME" if about is None else said_of(about)
    return f"{folder}: {what}"
