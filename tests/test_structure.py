"""Rooms and arrows of the package. `python tests/test_structure.py [FOLDER]` prints the figures of a checkout."""

import ast
import inspect
import statistics
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    ["__main__"],
    ["commands"],
    ["loading"],
    ["cli"],
    ["resuming", "parser", "trainer_checks", "shared_batch_norm"],
    ["methods"],
    ["callbacks"],
    ["report"],
    ["self_training"],
    ["terms"],
    ["step"],
    ["networks"],
    ["datasets"],
    ["data"],
    ["mixing", "pseudo_labels", "translation", "inference", "metrics", "optim"],
    ["tables", "windows", "checkpoints"],
    ["label_spaces"],
    ["ranges", "resize", "files", "precision", "includes", "signals", "mistakes", "ranks"],
    ["config_files", "errors"],
]
"""From the top of the house to its ground floor; a file imports from rooms below its own, and from its own."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
WITHOUT_LIGHTNING = [room for rooms in ROOMS[ROOMS.index(["terms"]) :] for room in rooms]
EXCEPTIONS = {"data.datamodule"}  # the one file below that Lightning calls


def modules(root):
    """Syntax trees of the package by module name, without its own name; packages by their `__init__`."""
    package = root / "lightning_uda"
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts)] = ast.parse(path.read_text())
    del found[""]
    return found


def imports(tree):
    """Names that a module imports, with what it imports from them; those in functions count too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(trees):
    """For each module the modules of the package that it imports."""
    edges = {}
    for name, tree in trees.items():
        wanted = (found.removeprefix("lightning_uda.") for found in imports(tree) if found.startswith("lightning_uda."))
        edges[name] = {found for found in wanted if found in trees and found != name}
    return edges


def room_of(module):
    return module.partition(".")[0]


def upward_imports(edges):
    return sorted(
        f"{name} -> {found}"
        for name, wanted in edges.items()
        for found in wanted
        if room_of(name) != room_of(found) and LEVEL.get(room_of(name), -1) >= LEVEL.get(room_of(found), -1)
    )


def circles(edges):
    """Groups of modules that import each other, directly or by way of others; a package's `__init__` doesn't count."""
    packages = {room_of(name) for name in edges if "." in name} | {
        name for name in edges if f"{name}." in " ".join(edges)
    }
    files = {name: {found for found in wanted if found not in packages} for name, wanted in edges.items()}

    def reached(start):
        seen, to_see = set(), [start]
        while to_see:
            for found in files[to_see.pop()] - seen:
                seen.add(found)
                to_see.append(found)
        return seen

    reach = {name: reached(name) for name in files}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) for name in files if name in reach[name]
    }
    return sorted(map(sorted, groups))


def lines_of(root):
    """Lines of each room."""
    package, lines = root / "lightning_uda", Counter()
    for path in package.rglob("*.py"):
        lines[path.relative_to(package).parts[0].removesuffix(".py")] += len(path.read_text().splitlines())
    return lines


def function_lengths(trees):
    """Lines of each function, its docstring included."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [n.end_lineno - n.lineno + 1 for tree in trees.values() for n in ast.walk(tree) if isinstance(n, functions)]


@pytest.fixture(scope="module")
def edges():
    return own_imports(modules(ROOT))


def test_every_room_has_a_level(edges):
    assert {room_of(name) for name in edges} == set(LEVEL)


def test_imports_point_down(edges):
    assert upward_imports(edges) == []


def test_no_files_import_each_other(edges):
    assert circles(edges) == []


def test_no_room_holds_more_than_a_fifth_of_the_lines():
    lines = lines_of(ROOT)
    assert {room: count for room, count in lines.items() if count > lines.total() / 5} == {}


def test_plain_torch_knows_no_lightning():
    found = {
        name
        for name, tree in modules(ROOT).items()
        if room_of(name) in WITHOUT_LIGHTNING and any(wanted.split(".")[0] == "lightning" for wanted in imports(tree))
    }
    assert found == EXCEPTIONS


def test_what_a_base_leaves_open_is_abstract():
    """So that the command line refuses the base by name, and Python when it is made, not in the middle of a run."""
    raised = {
        name
        for name, tree in modules(ROOT).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node)
    }
    assert not raised


def test_the_checks_find_what_they_look_for():
    edges = {"cli": {"commands.sweep"}, "commands.sweep": {"cli"}, "data.a": {"step"}, "step": set()}
    assert upward_imports(edges) == ["cli -> commands.sweep", "data.a -> step"]
    assert circles(edges) == [["cli", "commands.sweep"]]


def print_figures(root):
    trees = modules(root)
    edges, lines, lengths = own_imports(trees), lines_of(root), function_lengths(trees)
    print(f"{lines.total()} lines; functions: {len(lengths)}, median {statistics.median(lengths)} lines")
    for room, count in lines.most_common():
        print(f"  {room:15} {count:6} {100 * count / lines.total():5.1f} %")
    print(f"import circles: {circles(edges)}\nupward imports: {upward_imports(edges)}")
    sys.path.insert(0, str(root))
    from lightning_uda import methods

    for name in methods.__all__:
        method = getattr(methods, name)
        parameters = [p for p in inspect.signature(method.__init__).parameters if p not in ("self", "common")]
        step = inspect.getsource(method.algorithm if hasattr(method, "algorithm") else method.training_step)
        print(f"  {name:15} {len(parameters):3} constructor arguments, step {len(step.splitlines())} lines")


if __name__ == "__main__":
    print_figures(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
