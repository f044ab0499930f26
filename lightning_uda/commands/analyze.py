"""`lightning-uda analyze`: how the classes of source and target lie in the feature space of a trained network."""

from __future__ import annotations

from pathlib import Path

from lightning_uda.commands.options import CommandParser


def analyze_features(arguments: list[str]) -> None:
    """`analyze`: prints and writes distances and similarity of classes in feature space, and draws them.

    Args:
        arguments: `--config FILE --output DIR [--num_images N] [--no_tsne]` and options as for `validate`.

    Raises:
        ValueError: If there are to be no images.
    """
    chosen, options = _parser().parse_known_args(arguments)
    if chosen.num_images is not None and chosen.num_images < 1:
        raise ValueError(f"--num_images: found {chosen.num_images}, expected a number of images, at least 1.")
    from lightning_uda.commands.feature_analysis import analyze  # brings torch and Lightning, which help does without

    analyze(options, chosen.output, chosen.num_images, with_tsne=not chosen.no_tsne)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lightning-uda analyze",
        usage="lightning-uda analyze --config FILE --ckpt_path FILE --output DIR [options]",
        description="Measures how the classes of source and target (the val set) lie in feature space.",
        epilog="Further options are those of `lightning-uda validate`, such as --config and --ckpt_path.",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="Folder for table and figures.")
    parser.add_argument(
        "--num_images", type=int, metavar="N", help="Images of each set, evenly spread over it; all by default."
    )
    parser.add_argument("--no_tsne", action="store_true", help="Leave out the t-SNE figure, which takes longest.")
    return parser
