"""`lightning-uda predict --images`: what a trained run predicts for images and videos, by its folder alone."""

from __future__ import annotations

from pathlib import Path

from lightning_uda.commands.options import CommandParser
from lightning_uda.files import require_folder_place

KINDS = ("color", "overlay", "id", "raw_id", "confidence")
"""What can be written of a prediction, each in a folder of its name."""


def predict_files(arguments: list[str]) -> None:
    """`predict --images`: writes the predictions for images, videos, folders and lists of them.

    Args:
        arguments: `--images PATH [PATH ...] --ckpt_path RUN --output DIR [--write KIND ...] [--opacity SHARE]
            [--class_map FILE] [--frames] [--config FILE]` and options as for `validate`.

    Raises:
        CheckpointError: If the run has no whole checkpoint, or the file that is named is damaged.
        DatasetError: If there is no image, or one can't be read.
        FileExistsError: If the output holds predictions already.
        FileNotFoundError: If there is no such run, checkpoint or config.
        OSError: If the output can't be written.
        ValueError: If no image is given, or the checkpoint doesn't fit the config.
    """
    parser = _parser()
    chosen, options = parser.parse_known_args(arguments)
    if not chosen.images:
        parser.error("found nothing after --images; expected images, videos, folders, or lists of them.")
    require_folder_place(chosen.output, "--output")
    from lightning_uda.commands.file_prediction import predict  # brings torch and Lightning, which help does without

    predict(options, **vars(chosen))


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lightning-uda predict --images",
        usage="lightning-uda predict --images PATH [PATH ...] --ckpt_path RUN --output DIR [options]",
        description="Writes what a trained run predicts for images and videos: its config, classes and colours are "
        "those of its folder. Names, folders and sizes are kept, and nothing is overwritten.",
        epilog="Further options are those of `lightning-uda validate`, such as --model.inference SlidingWindow, "
        "--trainer.accelerator or --trainer.precision.",
    )
    parser.add_argument(
        "--images",
        nargs="*",
        required=True,
        metavar="PATH",
        help="Images, videos, folders with all that is below them, or text files (.txt) with a path a line.",
    )
    parser.add_argument(
        "--ckpt_path",
        type=Path,
        required=True,
        metavar="RUN",
        help="Folder of the run (its latest version, newest checkpoint) or of a version of it, or a checkpoint in one.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="Folder to write to.")
    parser.add_argument(
        "--write",
        nargs="+",
        choices=KINDS,
        default=["color", "overlay"],
        metavar="KIND",
        help="What to write, each into a folder of its name: color, overlay (the image under the colours), id (train "
        "ids), raw_id (ids as the labels of a data set have them), confidence. By default color and overlay.",
    )
    parser.add_argument(
        "--opacity", type=float, default=0.5, metavar="SHARE", help="Of the colours in overlays, from 0 to 1 (0.5)."
    )
    parser.add_argument(
        "--class_map",
        metavar="FILE",
        help="classes.json of the labels whose ids raw_id writes; by default the label ids of Cityscapes.",
    )
    parser.add_argument(
        "--frames", action="store_true", help="Write all of a video as PNG files of its frames, instead of a video."
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="Config of a checkpoint that doesn't lie in the folder of its run, or the name of a shipped one.",
    )
    return parser
