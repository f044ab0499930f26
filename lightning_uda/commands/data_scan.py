"""The scan of the datasets of a config, and what it prints."""

from __future__ import annotations

from argparse import SUPPRESS
from collections import Counter
from collections.abc import Iterable
from inspect import signature

import rich
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lightning_uda.cli import UDACLI
from lightning_uda.data.check import ScanReport, Size, absent_classes, counted, padded_crops, scan
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.dataset import DatasetError, Problem
from lightning_uda.errors import cause
from lightning_uda.label_spaces import LabelSpace
from lightning_uda.methods import UDAModule
from lightning_uda.tables import block, percent_bar

_SETS = ("source", "target", "labelled_target", "val", "test", "predict")
_LISTED_SIZES = 8


class DataCheckCLI(UDACLI):
    """Parses a whole experiment config, that of a run too, but makes its data module only."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what the config of a run says of its command, such as `ckpt_path`, which isn't needed here."""
        super().add_arguments_to_parser(parser)
        words = {
            name
            for command, parts in self.subcommands().items()
            for name in signature(getattr(Trainer, command)).parameters.keys() - {"self", *parts}
        }
        for name in sorted(words):
            parser.add_argument(f"--{name}", default=None, help=SUPPRESS)

    def instantiate_classes(self) -> None:
        """Makes `self.datamodule` without the datasets that can't be made; why not stands in `self.unusable`."""
        self.unusable: dict[str, str] = {}
        for name in _SETS:
            try:
                self._make_data(leave_out=[other for other in _SETS if other != name])
            except (DatasetError, ValueError) as error:
                self.unusable[name] = str(cause(error))
        self.datamodule = self._make_data(leave_out=self.unusable)

    def _make_data(self, leave_out: Iterable[str]) -> UDADataModule:
        data = self.config["data"].clone()
        for name in leave_out:
            data.init_args[name] = None
        made: UDADataModule = self.parser.instantiate_classes(Namespace(data=data))["data"]  # type: ignore[no-untyped-call]
        return made


def scan_data(arguments: list[str]) -> int:
    """Scans every dataset of a config and prints what it finds.

    Args:
        arguments: Options as for `fit`.

    Returns:
        Exit status: 0 if no dataset has a problem, else 1.
    """
    cli = DataCheckCLI(
        UDAModule,
        UDADataModule,
        seed_everything_default=0,
        parser_kwargs={
            "prog": "lightning-uda data check",
            "usage": "lightning-uda data check --config FILE [options]",
        },
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=arguments,
        run=False,
        auto_configure_optimizers=False,
    )
    cli.datamodule.setup("fit")
    console, label_space, problems = rich.get_console(), cli.datamodule.label_space, len(cli.unusable)
    for name, why in cli.unusable.items():
        console.print(f"\n[bold]data.{name}[/bold]  [red]can't be read[/red]\n", Text(why), sep="")
    for name, dataset in cli.datamodule.datasets.items():
        found = scan(dataset, label_space)
        if name in ("val", "test"):
            found.warnings += absent_classes(name, found, label_space)
        elif name != "predict":
            found.warnings += padded_crops(name, found, cli.datamodule.train_transform(name))
        if name in ("source", "target") and len(dataset) < cli.datamodule.batch_size:
            what = f"{len(dataset)} images, fewer than one batch of {cli.datamodule.batch_size}"
            found.problems.append(Problem(f"data.{name}", f"found {what}; add images or lower `batch_size`."))
        print_report(name, found, label_space, console)
        problems += len(found.problems)
    return 1 if problems else 0


def print_report(name: str, report: ScanReport, label_space: LabelSpace, console: Console) -> None:
    """Prints a scan's report: sizes, a table of the classes, and every problem under its file.

    Args:
        name: Heading.
        report: What `scan` found.
        label_space: The label space of that scan.
        console: Where to.
    """
    labels = f"{report.readable_labels} label maps" if report.has_labels else "no labels"
    console.print(Rule(Text(name, style="bold"), align="left"))
    console.print(f"{report.images} images ({report.readable_images} readable), {labels}", highlight=False)
    console.print(_size_line(report.sizes), highlight=False)
    if report.readable_images:
        console.print("mean RGB: {:.0f} {:.0f} {:.0f} of 255".format(*report.mean_rgb), highlight=False)
    if report.readable_labels:
        console.print(_class_table(report, label_space))
    _print_by_file("warnings", report.warnings, "yellow", console)
    _print_by_file("problems", report.problems, "red", console)
    files = len({problem.where for problem in report.problems})
    verdict = (
        f"{counted(len(report.problems), 'problem')} in {counted(files, 'file')}" if files else "no problems found"
    )
    console.print(Text(verdict, style="bold red" if files else "bold green"))


def _size_line(sizes: Counter[Size]) -> str:
    parts = [f"{height} x {width}: {count}" for (height, width), count in sizes.most_common(_LISTED_SIZES)]
    if len(sizes) > _LISTED_SIZES:
        parts.append(f"and {len(sizes) - _LISTED_SIZES} more sizes")
    return f"sizes (height x width: images): {', '.join(parts) or 'none'}"


def _class_table(report: ScanReport, label_space: LabelSpace) -> Table:
    table = Table("id", "", "class", "pixels %", "", "images", box=None, pad_edge=False)
    for column in (0, 3, 5):
        table.columns[column].justify = "right"
    shares = report.class_shares
    largest = max(float(shares.max()), 1e-12)
    for i, name in enumerate(label_space.classes):
        red, green, blue = label_space.palette[i]
        swatch = Text(block(), style=f"rgb({red},{green},{blue})")
        bar = percent_bar(100 * float(shares[i]) / largest)
        style = None if report.class_images[i] else "dim"
        table.add_row(
            str(i), swatch, Text(name), f"{100 * shares[i]:.2f}", bar, str(report.class_images[i]), style=style
        )
    pixels = int(report.class_pixels.sum()) + report.void_pixels
    table.add_row("", "", "void (of all pixels)", f"{100 * report.void_pixels / pixels:.2f}", "", "", style="italic")
    return table


def _print_by_file(title: str, problems: list[Problem], color: str, console: Console) -> None:
    if not problems:
        return
    console.print(Text(f"{title}:", style=f"bold {color}"))
    by_file: dict[str, list[str]] = {}
    for problem in problems:
        by_file.setdefault(problem.where, []).append(problem.what)
    for where, found in by_file.items():
        console.print(Text(f"  {where}", style=color), soft_wrap=True)
        for what in found:
            console.print(Text(f"    {what}"), soft_wrap=True)
