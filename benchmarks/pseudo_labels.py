"""How good pseudo-labels are: `python benchmarks/pseudo_labels.py runs/rounds/seed_*/cbst`.

Compares the labels of each round of self-training, `rounds/round_<r>/<name>.png` in a run folder, with the target set's
own labels at the size of the pseudo-labels. For each round and class it prints the share of the class's true pixels
that have a label, whichever, and the share of right ones among the labels of that class, where the truth is known; over
all classes the same, and the mean IoU of the evaluation after the round; all in percent, means over the runs, a dash
where there is nothing to measure. The same figures of each run go into `pseudo_labels.csv` in its folder or, of all
runs together, into the file `--output`.

The target set is that of the run's `config.yaml`, its labels included: nothing trains on them here.
"""

import argparse
import statistics
import warnings
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console

import lightning_uda.cli  # noqa: F401  makes the datasets known by their short names
from lightning_uda.data.dataset import SegmentationDataset
from lightning_uda.data.streams import LabelReader
from lightning_uda.label_spaces import IGNORE_INDEX, UNKNOWN_INDEX
from lightning_uda.report import load_runs
from lightning_uda.report.runs import init_args
from lightning_uda.self_training.label_folder import LabelFolder, RoundRecord
from lightning_uda.self_training.labelling import LabelCounts
from lightning_uda.tables import Row, console_table, csv_text, percent

ALL = "all classes"
COLUMNS = ("run", "round", "class", "true_pixels", "labelled_pixels", "labelled", "right", "miou_after")


def target_set(run):
    """The target set of a run's config, with labels."""
    config = run.config["data"]["init_args"]["target"]
    unlabelled = (("labelled", False), ("labels", None))
    arguments = {name: value for name, value in init_args(config).items() if (name, value) not in unlabelled}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationDataset, "target")
    parsed = parser.parse_object({"target": {"class_path": config["class_path"], "init_args": arguments}})
    return parser.instantiate_classes(parsed).target


def rounds_of(run):
    """Number and folder of each round that has all its labels."""
    folders = {
        int(path.parent.name.removeprefix("round_")): path.parent for path in run.folder.glob("rounds/*/round.json")
    }
    if not folders:
        raise SystemExit(f"{run.folder}: found no rounds/round_<r>/round.json; give run folders of self-training.")
    return sorted(folders.items())


def count(run, dataset, folder):
    """Pixels (C + 1, C + 1) by label and truth, with none in the last row and column."""
    space, labels = run.label_space, LabelFolder(folder, dataset)
    record = labels.record(RoundRecord.read(folder).made_from)
    table = space.lookup_table(dataset.class_ids, UNKNOWN_INDEX if dataset.strict_ids else IGNORE_INDEX)
    truth, counts = LabelReader(dataset, table), LabelCounts(space.num_classes, torch.device("cpu"))
    for index in record.images_of(dataset):
        counts.update(torch.from_numpy(labels(index)), truth(index))
    return counts.table


def share(part, whole):
    """Percent; `None` of nothing."""
    return 100 * int(part) / int(whole) if whole else None


def figures(run):
    """Of each round and class: pixels of that truth and of that label, labelled share, right share; then mean IoU."""
    dataset, rows = target_set(run), []
    starts = {int(number): step for step, number in zip(*run.curve("rounds/round"), strict=True)}
    for number, folder in rounds_of(run):
        table = count(run, dataset, folder)
        known, true = table[:-1, :-1], table[:, :-1].sum(dim=0)
        labelled, given, right = known.sum(dim=0), known.sum(dim=1), known.diagonal()
        after = run.evaluations.get(starts.get(number + 1, run.max_steps), {})
        for c, name in enumerate(run.classes):
            values = share(labelled[c], true[c]), share(right[c], given[c]), None
            rows.append((number, name, int(true[c]), int(table[c].sum()), *values))
        everything = share(known.sum(), true.sum()), share(right.sum(), known.sum()), after.get("miou")
        rows.append((number, ALL, int(true.sum()), int(table[:-1].sum()), *everything))
    return rows


def mean(values):
    """Mean of what is known."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def table_of(found):
    """The table on the console, means over runs.

    Args:
        found: What `figures` gave, by run.
    """
    rows = [row for several in found.values() for row in several]
    numbers, names = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 1))

    def cell(number, name, column):
        return percent(mean([row[column] for row in rows if row[:2] == (number, name)]))

    headings = [f"round {number}: {what}" for number in numbers for what in ("has label", "right")]
    lines = [
        Row(name, [cell(number, name, column) for number in numbers for column in (4, 5)], section=name == ALL)
        for name in names
    ]
    mious = [text for number in numbers for text in (cell(number, ALL, 6), "")]
    lines.append(Row("mIoU after the round", mious, style="bold"))
    title = f"Pseudo-labels, %, {len(found)} run{'s' * (len(found) != 1)}"
    return console_table(title, ("class", *headings), lines)


def main(arguments=None):
    """Prints a table over the runs and writes the figures of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="Run folders, such as those of one row over seeds.")
    parser.add_argument("--output", type=Path, help="One file for all runs, instead of one in each run's folder.")
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    found = {str(run.folder): figures(run) for run in load_runs(chosen.runs)}
    Console().print(table_of(found))
    lines = {folder: [(folder, *row) for row in rows] for folder, rows in found.items()}
    if chosen.output is None:
        files = {Path(folder) / "pseudo_labels.csv": rows for folder, rows in lines.items()}
    else:
        files = {chosen.output: [row for rows in lines.values() for row in rows]}
    for path, rows in files.items():
        path.write_text(csv_text(COLUMNS, rows), encoding="utf-8")
        Console().print(str(path), soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
