"""What the parser refuses, in one or two lines: where, what was found, what is allowed, and the nearest names.

jsonargparse tells of a mistake in a part of a part by what each type on the way says of it, one level further in each.
`explained` takes from that account where the mistake is, and from the types of the constructors what is allowed there.
"""

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from lightning_uda.errors import did_you_mean

_KEY = re.compile(r'Parser key "([^"]+)"(?: element \d+)?:\s*(.*)', re.DOTALL)
_CLASS = re.compile(r"Problem with given class_path '([^']+)':")
_OPTION = re.compile(r"Option '([^']+)'")
_GROUP = re.compile(r"Group '([\w.]+)' does not accept option '([^']+)'")
_REQUIRED = re.compile(r"required: (.+)|Key \"([^\"]+)\" is required")
_NAMED = re.compile(r"(?:path string: |path format: |Expected a path but |Import path |load config )\"?([^\s\"]+)")
_CALLABLE = re.compile(r"^( *)Type .*? expects a function or a callable class: (.*?class_path='([^']+)')", re.M | re.S)
_VALUE = re.compile(r"(?:Got value|Given value): (.*?)(?:\. Got value: .*)?\Z", re.DOTALL)
_NESTED = re.compile(r"NestedArg\(key='([^']*)', val=(.*)\)$")
_TYPE = re.compile(r"Expected a <class '(\w+)'>")
_LINK = re.compile(r"Call to compute_fn of link '\w+\(([\w.]+)[^)]*\).*?failed: (.*)", re.DOTALL)
_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value type:")
_LISTED = 24
_LENGTH = 300
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    None: "null",
}


class _Mistake(NamedTuple):
    """Where the parser's account ends.

    Attributes:
        keys: Names of the arguments on the way.
        owner: Class that the last of them is an argument of, or that `what` is about; "" at the top.
        what: What is said there, an alternative of the type in each.
        value: What was found, as text.
        option: Name of the option that was given, below the first key; "" if the mistake is in a file.
    """

    keys: list[str]
    owner: str
    what: list[str]
    value: str | None
    option: str


def explained(message: str, roots: Mapping[str, type]) -> str:
    """What is wrong, in one or two lines.

    Args:
        message: The parser's account.
        roots: Types of the arguments at the top, and of groups of such (`trainer`).
    """
    if (link := _LINK.search(message)) is not None:
        return f"{link[1].replace('.init_args', '')}: {link[2]}"
    if (group := _GROUP.match(message)) is not None:
        return _unknown_argument(group[1], group[2], roots.get(group[1]))
    mistake = _deepest(message)
    path, owner, hint = ".".join(mistake.keys), _imported(mistake.owner), _hint_at(mistake, roots)
    inner = f"{mistake.keys[0]}.{mistake.option}" if mistake.keys and mistake.option else ""
    if _is_mapping(hint) and inner.startswith(f"{path}."):  # of a mapping the account leaves out the name
        path, hint = f"{path}.{inner.removeprefix(f'{path}.').partition('.')[0]}", get_args(hint)[1]
    if (option := _found(_OPTION, mistake.what)) is not None:
        return _unknown_argument(path, option, owner or roots.get(path))
    if (required := _found(_REQUIRED, mistake.what)) is not None and owner is not None:
        return f"{path}: {_name(owner)} needs {required}, which isn't given."
    expected = described(hint) if hint is not None else _types_named(mistake.what)
    if not expected:
        return _condensed(message)
    value, further = _read(mistake.value)
    if further and hint in _WORDS:
        return f"{path}: found an option {further!r} of it; expected {expected}."
    nearest = did_you_mean(str(value).rpartition(".")[2], _choices(hint))
    why = [text.rstrip(".") for text in mistake.what if not text.startswith(("Expected", "Import path", "Unexpected"))]
    because = f"({why[0]}.)" if why and isinstance(value, str) and "." in value else ""
    found = "null" if value is None else repr(value)
    found = found if len(found) <= _LENGTH // 2 else f"{found[: _LENGTH // 2]} ..."  # a whole group of settings
    text = f"{path}: found {found}; expected {expected}."
    return " ".join(filter(None, [text, nearest, because]))


def described(hint: Any) -> str:
    """What a type takes, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return _either([repr(arg) for arg in args])
    if origin in (Union, types.UnionType):
        args = tuple(arg for arg in args if getattr(arg, "__name__", "") != "Tensor")  # beside a number, for Python
        several = [arg for arg in args if _is_list(arg) and get_args(arg)[0] in args]
        ordered = sorted((arg for arg in args if arg not in several), key=lambda arg: arg is type(None))
        words = list(dict.fromkeys(described(arg) for arg in ordered))
        return _either([words[0], "a list of such", *words[1:]] if several else words)
    if origin is tuple and Ellipsis not in args:
        return f"[{', '.join(map(described, args))}]"
    if _is_mapping(hint):
        return f"a mapping of names to {described(args[1])}"
    if _is_list(hint):
        return f"a list, each item {described(args[0])}"
    if origin is Callable and isinstance(args[-1], type):
        return described(args[-1])
    return _described_class(hint) if isinstance(hint, type) else str(hint)


def _described_class(kind: type) -> str:
    names = [name for name in _subclasses(kind) if name != kind.__name__]
    if not names:
        arguments = arguments_of(kind)
        listed = f" ({', '.join(arguments)})" if len(arguments) <= _LISTED else ""
        return f"a mapping of the arguments of {kind.__name__}{listed}"
    article = "an" if kind.__name__[0] in "AEIO" else "a"
    listed = f"{', '.join(names)}, or " if len(names) <= _LISTED else "by its name, or "
    return f"{article} {kind.__name__} ({listed}one of yours by its import path)"


def arguments_of(owner: Any) -> list[str]:
    """Names of a constructor's arguments, or a function's, those of base classes included where it hands them on."""
    names: dict[str, None] = {}
    kinds = owner.__mro__ if isinstance(owner, type) else [owner]
    for kind in kinds:
        function = vars(kind).get("__init__") if isinstance(owner, type) else kind
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters.values()
        passed_on = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        names |= dict.fromkeys(one.name for one in parameters if one.kind not in passed_on)
        if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    return [name for name in names if name not in ("self", "params")]  # parameters come from the method


def _unknown_argument(path: str, option: str, owner: Any) -> str:
    option = option.rpartition(".")[2]
    if owner is None:
        return f"found {option!r}, which is no option."
    names = arguments_of(owner)
    listed = f"Its arguments are {', '.join(names)}." if 0 < len(names) <= _LISTED else ""
    text = f"{path}: {_name(owner)} has no argument {option!r}."
    return " ".join(filter(None, [text, did_you_mean(option, names), listed]))


def _deepest(message: str) -> _Mistake:
    """The part of the account that is furthest in."""
    stack: list[tuple[int, str, str]] = []  # indent, "key" or "class", its name
    leaves: list[tuple[list[tuple[str, str]], str]] = []
    values: list[tuple[int, str]] = []
    account = _CALLABLE.sub(r"\1Problem with given class_path '\3':\n\1 \2", message)
    for line in account.splitlines():
        text = line.lstrip()
        indent = len(line) - len(text) + 2 * text.startswith("- ")
        text = text.removeprefix("- ")
        if not text or text.startswith(_NOISE):
            continue
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if (value := _VALUE.match(text)) is not None:
            values.append((len(stack), value[1]))
        elif (key := _KEY.match(text)) is not None:
            stack.append((indent, "key", key[1]))
            text = key[2]
        elif (kind := _CLASS.match(text)) is not None:
            stack.append((indent, "class", kind[1]))
            text = ""
        if text and value is None:
            leaves.append(([(kind, name) for _, kind, name in stack], text))
    return _at(leaves, values)


def _at(leaves: Sequence[tuple[list[tuple[str, str]], str]], values: Sequence[tuple[int, str]]) -> _Mistake:
    """What is said furthest in, by all alternatives there."""
    way = max((way for way, _ in leaves), key=len, default=[])
    what = [text for other, text in leaves if other == way]
    given = _found(_VALUE, what) or _found(_NAMED, what)
    if way and way[-1][0] == "class" and _found(_OPTION, what) is None and _found(_REQUIRED, what) is None:
        given, way = way[-1][1], way[:-1]  # the class itself can't be had
    if given is None and values:
        given = max(values, key=lambda one: one[0])[1]
    keys = [name.replace(".init_args", "") for kind, name in way if kind == "key"]
    owners = [name for kind, name in way if kind == "class"]
    option = next((match[1] for _, value in reversed(values) if (match := _NESTED.search(value))), "")
    return _Mistake(keys, owners[-1] if owners else "", what, given, option.replace(".init_args", ""))


def _hint_at(mistake: _Mistake, roots: Mapping[str, type]) -> Any:
    if not mistake.keys:
        return None
    if mistake.owner:
        return _hint_of(_imported(mistake.owner), mistake.keys[-1])
    group, _, name = mistake.keys[-1].rpartition(".")
    return _hint_of(roots.get(group), name) if group else roots.get(name)


def _hint_of(owner: Any, argument: str) -> Any:
    """Type of a constructor's argument, in the class or in a base that it hands it on to."""
    kinds = owner.__mro__ if isinstance(owner, type) else [owner] if owner is not None else []
    for kind in kinds:
        with suppress(KeyError, NameError, TypeError):
            hints = get_type_hints(vars(kind)["__init__"] if isinstance(owner, type) else kind)
            if argument in hints:
                return hints[argument]
    return None


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    with suppress(ImportError, AttributeError, ValueError):
        return getattr(import_module(module), name)
    return None


def _subclasses(kind: type) -> list[str]:
    """Names of the classes from a type down that can be made: this package's, and those of the type's package."""
    packages = {kind.__module__.partition(".")[0], __name__.partition(".")[0]}
    found: set[str] = set()
    left: list[Any] = [kind]
    while left:
        one = left.pop()
        left += [other for other in one.__subclasses__() if not other.__name__.startswith("_")]
        if not inspect.isabstract(one) and one.__module__.partition(".")[0] in packages:
            found.add(one.__name__)
    return sorted(found)


def _choices(hint: Any) -> list[str]:
    """Names among which the nearest one is looked for."""
    if get_origin(hint) is Literal:
        return [str(arg) for arg in get_args(hint)]
    if isinstance(hint, type) and hint not in _WORDS and get_origin(hint) is None:
        return _subclasses(hint)
    args = [arg for arg in get_args(hint) if isinstance(arg, type) or get_origin(arg) is not None]
    return [name for arg in args for name in _choices(arg)]


def _found(pattern: re.Pattern[str], texts: Iterable[str]) -> str | None:
    for text in texts:
        if (match := pattern.search(text)) is not None:
            return next(group for group in match.groups() if group is not None)
    return None


def _read(value: str | None) -> tuple[Any, str]:
    """The value that a text tells of, and the name of the option below that was given it."""
    nested = _NESTED.search(value or "")
    text = nested[2] if nested is not None else "None" if value is None else value
    with suppress(ValueError, SyntaxError):
        text = ast.literal_eval(text)
    return text, nested[1] if nested is not None else ""


def _types_named(texts: Iterable[str]) -> str:
    """Types that the account itself names, in words."""
    names = [name for text in texts for name in _TYPE.findall(text)]
    words = {getattr(kind, "__name__", ""): word for kind, word in _WORDS.items()}
    return _either([words.get(name, name) for name in dict.fromkeys(names)])


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping) and len(get_args(hint)) == 2


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Iterable) and not _is_mapping(hint)


def _name(owner: Any) -> str:
    return getattr(owner, "__name__", str(owner))


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names)


def _condensed(message: str) -> str:
    """An account without what it says of types, in one line."""
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    text = " ".join(line for line in lines if line and not line.startswith(_NOISE))
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]} ..."
