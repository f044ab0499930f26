"""`lightning-uda export`: a trained network as one file that runs without this package."""

from __future__ import annotations

from pathlib import Path

from lightning_uda.commands.options import CommandParser
from lightning_uda.files import require_file_place
from lightning_uda.ranges import SIDE, require


def export_network(arguments: list[str]) -> None:
    """`export`: writes the network of a checkpoint as a program of `torch.export` or as ONNX, and checks the file.

    Args:
        arguments: `--config FILE --ckpt_path FILE --output FILE --format onnx|torch_export [--network NAME]
            [--gives logits|labels] [--size HEIGHT WIDTH]` and options as for `validate`.

    Raises:
        OSError: If there is an output already, or it can't be written.
        ValueError: If a size is out of range.
    """
    chosen, options = _parser().parse_known_args(arguments)
    require(SIDE, chosen.size, "--size")
    require_file_place(chosen.output, "--output")
    if chosen.output.exists():
        raise FileExistsError(f"--output: found {chosen.output}. Move it away, or give another file.")
    from lightning_uda.commands.network_export import export  # brings torch and Lightning, which help does without

    size = None if chosen.size is None else tuple(chosen.size)
    export(options, chosen.output, chosen.format, chosen.network, chosen.gives, size)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lightning-uda export",
        usage="lightning-uda export --config FILE --ckpt_path FILE --output FILE --format FORMAT [options]",
        description="Writes a trained network, its input normalisation included, as one file, and checks it.",
        epilog="Further options are those of `lightning-uda validate`, such as --config and --ckpt_path.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="The file to write.")
    parser.add_argument(
        "--format",
        choices=("onnx", "torch_export"),
        required=True,
        help="ONNX, or a program of torch.export (.pt2), which torch.export.load reads.",
    )
    parser.add_argument(
        "--network", choices=("student", "teacher"), help="Which network; by default the one that the method evaluates."
    )
    parser.add_argument(
        "--gives",
        choices=("logits", "labels"),
        default="logits",
        help="Logits at the size of the image (default), or the class of each pixel, as its train id.",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="Fix the size of images, for networks whose program depends on it (HRDA); any size by default.",
    )
    return parser
