"""Networks as files that run without this package, checked against PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import rich
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lightning_uda.cli import run_trainer
from lightning_uda.files import gigabytes, replace_file
from lightning_uda.inference import WholeImage
from lightning_uda.loading import TrainedCLI, load_weights
from lightning_uda.methods import AdaBN, UDAModule
from lightning_uda.networks import SegmentationNetwork
from lightning_uda.resize import Size, upsample

Format = Literal["onnx", "torch_export"]
Gives = Literal["logits", "labels"]
TOLERANCE = 1e-4
"""Largest difference of logits between file and PyTorch, as a share of the largest logit where that is above 1."""

_log = logging.getLogger(__name__)
_BATCHES = (1, 3)
_TRACED: Size = (128, 192)
_TRIED: tuple[Size, ...] = ((131, 203), (96, 160), (160, 224))
"""Sizes that a file is checked on, the first two of those that the network itself takes: odd sides, then even ones."""


class ImageToScores(nn.Module):
    """What a file holds: RGB images float32 (N, 3, H, W) in [0, 1] in, logits or labels of all pixels out.

    Args:
        network: The network.
        gives: "logits", float32 (N, C, H, W), or "labels", train ids uint8 (N, H, W).
    """

    def __init__(self, network: SegmentationNetwork, gives: Gives) -> None:
        super().__init__()
        self.network = network
        self.gives = gives

    def logits(self, image: Tensor) -> Tensor:
        """Logits at the size of the image."""
        return upsample(self.network(image), (image.shape[-2], image.shape[-1]), self.network.align_corners)

    def forward(self, image: Tensor) -> Tensor:
        """Logits or labels at the size of the image."""
        logits = self.logits(image)
        return logits if self.gives == "logits" else logits.argmax(dim=1).to(torch.uint8)


class Checked(NamedTuple):
    """How a file compares with PyTorch.

    Attributes:
        shape: Of the images that it was compared on.
        difference: Largest one of logits. Of labels: how far, at most, the logit of the file's label lies below the
            largest one.
        allowed: Largest difference that is allowed.
    """

    shape: tuple[int, ...]
    difference: float
    allowed: float


def export(
    options: list[str],
    output: Path,
    file_format: Format,
    which: Literal["student", "teacher"] | None,
    gives: Gives,
    size: Size | None,
) -> None:
    """Writes the network of a checkpoint as a file, checks it and says so.

    Args:
        options: As for `validate`.
        output: The file.
        file_format: "onnx" or "torch_export".
        which: Network to take; `None` takes the one that the method evaluates.
        gives: What comes out, "logits" or "labels".
        size: Height and width that images have; `None`: any.

    Raises:
        FileNotFoundError: If the checkpoint isn't there.
        ValueError: If ONNX isn't installed, the method lacks that network, the network can't be exported, or the file
            doesn't give what PyTorch gives.
    """
    if file_format == "onnx":
        require_onnx()
    cli = run_trainer(["validate", *options], kind=TrainedCLI)
    path = cli.config["validate"]["ckpt_path"]
    if path is None:
        raise ValueError("--ckpt_path: found none, expected a checkpoint, from the `checkpoints` folder of a run.")
    step = load_weights(cli.model, path)
    name, network = network_of(cli.model, which)
    model = ImageToScores(network.requires_grad_(False), gives).eval()
    program = traced(model, size)
    checks: list[Checked] = []

    def write(partial: Path) -> None:
        _write(program, partial, file_format)
        checks.extend(compare(model, _reader(partial, file_format), size))

    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, write)
    _say(output, f"{name} of {type(cli.model).__name__} at step {step}", model, checks)
    _warn(cli.model)


def require_onnx() -> None:
    """Checks that ONNX files can be written and run.

    Raises:
        ValueError: If a package is missing.
    """
    if lacking := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(
            f"--format onnx: found no {', '.join(lacking)}. Install what writes and checks such files by "
            '`pip install "lightning_uda[export]"`, or take --format torch_export.'
        )


@torch.no_grad()
def traced(model: ImageToScores, size: Size | None) -> ExportedProgram:
    """The program of a model, for any number of images, of any size unless one is given.

    Raises:
        ValueError: If the network's program depends on what is to be left open.
    """
    sides = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if size is None else {}
    example = torch.rand(2, 3, *(size or _TRACED), generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.export.export(
                model, (example,), dynamic_shapes={"image": {0: Dim.DYNAMIC, **sides}}, strict=False
            )
    except Exception as error:  # of many kinds, from all that takes part in tracing
        raise ValueError(_not_exported(model, size, error)) from error


@torch.no_grad()
def compare(model: ImageToScores, read: Callable[[Tensor], Tensor], size: Size | None) -> list[Checked]:
    """Compares a file with PyTorch on random images of two shapes.

    Args:
        model: What was exported.
        read: Runs the file.
        size: Height and width that images have; `None` takes two sizes that the network itself can take.

    Raises:
        ValueError: If the file can't be run on one, or gives something else.
    """
    generator = torch.Generator().manual_seed(1)
    checks: list[Checked] = []
    for sides in _TRIED if size is None else (size,) * len(_BATCHES):
        if len(checks) == len(_BATCHES):
            break
        image = torch.rand(_BATCHES[len(checks)], 3, *sides, generator=generator)
        try:
            expected = model.logits(image)
        except Exception:  # of the network's own, such as sides that have to be multiples of something
            if size is not None:
                raise
            continue
        try:
            found = read(image)
        except Exception as error:  # of many kinds
            raise ValueError(_not_exported(model.network, size, error)) from error
        checks.append(_checked(found, expected, model.gives))
        if not checks[-1].difference <= checks[-1].allowed:
            raise ValueError(
                f"The file differs from PyTorch by {checks[-1].difference:.1e} on images {tuple(image.shape)}, "
                f"expected at most {checks[-1].allowed:.1e}; it isn't kept. Take the other --format."
            )
    return checks


def _checked(found: Tensor, expected: Tensor, gives: Gives) -> Checked:
    shape = tuple(expected.shape)
    if gives == "logits":
        difference = (found - expected).abs().max()
    else:
        difference = (expected.amax(dim=1) - expected.gather(1, found.long().unsqueeze(1)).squeeze(1)).max()
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    return Checked((shape[0], 3, *shape[2:]), float(difference), allowed)


def network_of(method: UDAModule, which: Literal["student", "teacher"] | None) -> tuple[str, SegmentationNetwork]:
    """What is exported of a method: "student" or "teacher", and the network.

    Args:
        method: The method.
        which: Network to take; `None` takes the one that is evaluated.

    Raises:
        ValueError: If there is none.
    """
    teacher = getattr(method, "teacher", None)
    if which == "teacher" and teacher is None:
        raise ValueError(
            f"--network: found teacher, but {type(method).__name__} has none. Leave it out to take its student."
        )
    network = {"student": method.student, "teacher": teacher, None: method.evaluated_network()}[which]
    assert isinstance(network, SegmentationNetwork)
    return "student" if network is method.student else "teacher", network


def _write(program: ExportedProgram, path: Path, file_format: Format) -> None:
    if file_format == "torch_export":
        with path.open("wb") as file:
            torch.export.save(program, file)
        return
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=["image"], output_names=["scores"], external_data=False, verbose=False
    )
    assert onnx is not None
    onnx.save(path, external_data=False)


def _reader(path: Path, file_format: Format) -> Callable[[Tensor], Tensor]:
    """What runs a file."""
    if file_format == "torch_export":
        with path.open("rb") as file:
            return torch.export.load(file).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])


def _not_exported(model: nn.Module, size: Size | None, error: Exception) -> str:
    network = model.network if isinstance(model, ImageToScores) else model
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    fix = "Give --size HEIGHT WIDTH, which fixes it." if size is None else "It takes PyTorch to run it."
    open_ = "images of any size" if size is None else f"images of {size[0]} x {size[1]}"
    return f"{type(network).__name__} can't be exported for {open_} ({reason}). {fix}"


def _say(output: Path, what: str, model: ImageToScores, checks: list[Checked]) -> None:
    classes = model.network.num_classes
    gives = f"logits float32 (N, {classes}, H, W)" if model.gives == "logits" else "train ids uint8 (N, H, W)"
    shapes = " and ".join(str(check.shape) for check in checks)
    worst = max(checks, key=lambda check: check.difference)
    lines = (
        f"{output} ({gigabytes(output.stat().st_size)}): the {what}.",
        f"RGB images float32 (N, 3, H, W) in [0, 1] in, {gives} out; the normalisation is inside.",
        f"Checked against PyTorch on images {shapes}: largest difference of logits {worst.difference:.1e}, "
        f"allowed {worst.allowed:.1e}.",
    )
    for line in lines:
        rich.get_console().print(line, soft_wrap=True, highlight=False, markup=False)


def _warn(method: UDAModule) -> None:
    """Says what evaluation does that the file doesn't."""
    inference = method.inference
    if not (isinstance(inference, WholeImage) and inference.resize is None and inference.align_corners is None):
        _log.warning(
            "the method is evaluated by %s; the file passes whole images through the network, once and as they are",
            type(inference).__name__,
        )
    if isinstance(method, AdaBN):
        _log.warning("AdaBN evaluates with BatchNorm statistics of target images; the file has those of training")
