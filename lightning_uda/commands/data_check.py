"""`lightning-uda data check`: looks through the datasets of a config."""

from __future__ import annotations

from lightning_uda.commands.options import CommandParser


def check_data(arguments: list[str]) -> int:
    """`data check`: scans every dataset of a config and prints what it finds.

    Args:
        arguments: Options as for `fit`; `--help` tells what they are without parsing them.

    Returns:
        Exit status: 0 if no dataset has a problem, else 1.
    """
    parser = CommandParser(
        prog="lightning-uda data check",
        usage="%(prog)s --config FILE [options]",
        description="Looks through the datasets of a config: counts, sizes, classes, every problem. The exit status is "
        "0 if there is no problem, else 1.",
        epilog="Further options are those of `lightning-uda fit`, such as `--data.source.root FOLDER`; its --help "
        "lists them.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="Config of an experiment, or several in turn.")
    parser.parse_known_args(arguments)  # ends where help is asked for
    from lightning_uda.commands.data_scan import scan_data  # brings torch and Lightning, which help does without

    return scan_data(arguments)
