"""The table of a grid: mean and deviation over seeds of each row, and its paired difference from a control row."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan, nan, sqrt

from rich.table import Table
from scipy.stats import t

from lightning_uda.metrics import iou_column, score_label
from lightning_uda.report.runs import Run
from lightning_uda.tables import Row, console_table, csv_text, plus_minus

BELOW_ONE = "classes_below_1"
"""Metric: number of classes whose IoU stays below 1 %; classes that are absent don't count."""

BEST = "best_"
"""Beginning of metrics that are the highest of all evaluations of a run: `best_miou`. Target labels choose which."""

Figures = Mapping[str, float]
"""Value of each metric of a run; NaN where there is nothing to measure."""

Seeds = Mapping[Hashable, Figures]
"""Figures of a row's runs by what tells them from each other: their seed, and the values of further axes."""


@dataclass(frozen=True)
class Spread:
    """What is known of a number that was measured several times.

    Attributes:
        count: How often.
        mean: Its mean; `None` if it was never measured.
        deviation: Its standard deviation, that of a sample (divided by `count` - 1); `None` below two measurements.
    """

    count: int
    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values."""
        mean = statistics.mean(values) if values else None
        return cls(len(values), mean, statistics.stdev(values) if len(values) > 1 else None)

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean (Student's t); `None` below two measurements."""
        if self.deviation is None:
            return None
        return float(t.ppf(0.975, self.count - 1)) * self.deviation / sqrt(self.count)

    @property
    def resolved(self) -> bool:
        """Whether the 95 % interval of the mean leaves out 0."""
        return self.mean is not None and self.half_width is not None and abs(self.mean) > self.half_width


@dataclass(frozen=True)
class Score:
    """A metric of a row.

    Attributes:
        row: The row.
        metric: The metric.
        value: Over the seeds that measured it.
        control: The row that it is compared with; `None` for that row itself.
        difference: Row less control, over the seeds that measured both; `None` for the control itself.
    """

    row: str
    metric: str
    value: Spread
    control: str | None
    difference: Spread | None


def score_rows(rows: Mapping[str, Seeds], metrics: Iterable[str], control: str) -> list[Score]:
    """Scores of all rows.

    Args:
        rows: Figures of each row.
        metrics: What to tabulate.
        control: The row that the others are compared with, seed by seed.

    Returns:
        For each row its metrics, in the order given. A class that is absent from labels and predictions of a run has no
        IoU there, and the run doesn't count for it.
    """
    scores = []
    measured = {
        (row, metric): _measured(runs, metric) for metric in dict.fromkeys(metrics) for row, runs in rows.items()
    }
    for row in rows:
        for metric in dict.fromkeys(name for _, name in measured):
            values, others = measured[row, metric], measured.get((control, metric), {})
            compared = row != control
            scores.append(
                Score(
                    row,
                    metric,
                    Spread.of(list(values.values())),
                    control if compared else None,
                    _difference(values, others) if compared else None,
                )
            )
    return scores


@dataclass(frozen=True)
class OrderStep:
    """Two neighbours of an order that a paper claims.

    Attributes:
        order: Name of the order.
        lower: The row that should be lower.
        higher: The row that should be higher.
        metric: The metric.
        difference: Higher less lower, over the seeds that measured both.
    """

    order: str
    lower: str
    higher: str
    metric: str
    difference: Spread

    @property
    def holds(self) -> str:
        """Says "yes" or "no" where the 95 % interval of the difference leaves out 0, else "not resolved"."""
        if not self.difference.resolved:
            return "not resolved"
        return "yes" if (self.difference.mean or 0) > 0 else "no"


def order_steps(rows: Mapping[str, Seeds], orders: Mapping[str, Sequence[str]], metric: str) -> list[OrderStep]:
    """Paired differences between the neighbours of orders.

    Args:
        rows: Figures of each row.
        orders: Rows of each order by its name, the lowest first. Rows without figures are left out, so that those
            beside them become neighbours.
        metric: The metric.
    """
    return [
        OrderStep(
            order, lower, higher, metric, _difference(_measured(rows[higher], metric), _measured(rows[lower], metric))
        )
        for order, names in orders.items()
        for lower, higher in pairwise(name for name in names if rows.get(name))
    ]


def orders_table(steps: Sequence[OrderStep], titles: Mapping[str, str]) -> Table:
    """The steps of orders with their differences, and whether they hold."""
    most = max(step.difference.count for step in steps)
    lines = [
        Row(step.order, [titles[step.lower], titles[step.higher], _text(step.difference, most, sign="+"), step.holds])
        for step in steps
    ]
    table = console_table(
        "Orders", ["order", "from", "to", f"difference, {metric_label(steps[0].metric)}", "holds"], lines
    )
    table.caption = (
        f"Mean {plus_minus()} standard deviation of the paired differences; a step holds if their 95 % interval is "
        "above 0."
    )
    return table


def orders_text(steps: Sequence[OrderStep]) -> str:
    """The steps of orders as CSV.

    Returns:
        Columns `order`, `lower`, `higher`, `metric`, `pairs`, `difference`, `difference_deviation`, `half_width` of the
        95 % interval, and `holds`.
    """
    lines = [
        [
            step.order,
            step.lower,
            step.higher,
            step.metric,
            *_cells(step.difference),
            _rounded(step.difference.half_width),
            step.holds,
        ]
        for step in steps
    ]
    columns = [
        "order",
        "lower",
        "higher",
        "metric",
        "pairs",
        "difference",
        "difference_deviation",
        "half_width",
        "holds",
    ]
    return csv_text(columns, lines)


def figures_of(run: Run, metrics: Iterable[str]) -> dict[str, float]:
    """Metrics of a run, as for `metric_of`; NaN where there is nothing to measure."""
    found = {metric: metric_of(run, metric) for metric in metrics}
    return {metric: nan if value is None else value for metric, value in found.items()}


def metric_of(run: Run, metric: str) -> float | None:
    """A metric of a run.

    Args:
        run: The run.
        metric: A column of its evaluations, such as `miou`, of which the last counts, in percent, or with `best_` in
            front, such as `best_miou`, the highest; `classes_below_1`; or a name with a slash, such as
            `train/tail_classes`, of which all logged values are averaged.

    Returns:
        The value; `None` where there is nothing to measure.
    """
    if metric == BELOW_ONE:
        ious = [run.value(iou_column(name)) for name in run.classes]
        return float(sum(iou < 1 for iou in ious if iou is not None))
    if metric.startswith(BEST):
        best = run.best(metric.removeprefix(BEST))
        return None if best is None else best[1]
    if "/" in metric:
        logged = run.curve(metric)[1]
        return statistics.mean(logged) if logged else None
    return run.value(metric)


def scores_table(title: str, scores: Sequence[Score], titles: Mapping[str, str]) -> Table:
    """The scores with a line for each row, and two columns for each metric: the value and the difference.

    Args:
        title: Heading.
        scores: What `score_rows` gave.
        titles: How rows are called, by their names.
    """
    control = next((score.control for score in scores if score.control), None)
    most = max((score.value.count for score in scores), default=0)
    columns, lines = ["row"], {score.row: [] for score in scores}  # type: tuple[list[str], dict[str, list[str]]]
    for metric in dict.fromkeys(score.metric for score in scores):
        columns += [metric_label(metric), *([f"vs. {titles[control]}"] if control else [])]
    for score in scores:
        difference = "" if score.difference is None else _text(score.difference, most, sign="+")
        lines[score.row] += [_text(score.value, most), *([difference] if control else [])]
    table = console_table(title, columns, [Row(titles[row], cells) for row, cells in lines.items()])
    runs = f"{most} run{'s' * (most != 1)}"
    table.caption = f"Mean {plus_minus()} standard deviation over {runs}, differences seed by seed."
    if any(score.metric.startswith(BEST) for score in scores):
        table.caption += " Best: the evaluation is chosen with target labels."
    return table


def scores_text(scores: Mapping[str, Sequence[Score]]) -> str:
    """The scores of several tables as CSV, a line for each row and metric.

    Args:
        scores: Scores by the name of their table.

    Returns:
        Columns `table`, `row`, `metric`, `runs`, `mean`, `deviation`, `control`, `pairs`, `difference` and
        `difference_deviation`; rounded to four places, empty where there is nothing.
    """
    columns = ["table", "row", "metric", "runs", "mean", "deviation", "control", "pairs", "difference"]
    lines = []
    for table, score in ((table, score) for table, several in scores.items() for score in several):
        difference = _cells(score.difference) if score.difference else [None] * 3
        lines.append([table, score.row, score.metric, *_cells(score.value), score.control, *difference])
    return csv_text([*columns, "difference_deviation"], lines)


def metric_label(metric: str) -> str:
    """How tables call a metric: `mIoU (13)`, `best mIoU`, `road`, `classes below 1 %`, `train/tail_classes`."""
    if metric.startswith(BEST):
        return f"best {metric_label(metric.removeprefix(BEST))}"
    return "classes below 1 %" if metric == BELOW_ONE else score_label(metric)


def _measured(runs: Seeds, metric: str) -> dict[Hashable, float]:
    found = {seed: figures.get(metric, nan) for seed, figures in runs.items()}
    return {seed: value for seed, value in found.items() if not isnan(value)}


def _difference(values: Mapping[Hashable, float], others: Mapping[Hashable, float]) -> Spread:
    return Spread.of([value - others[seed] for seed, value in values.items() if seed in others])


def _text(spread: Spread, most: int, sign: str = "") -> str:
    """Such as "31.2 ± 0.8"; the number of runs follows where it isn't the table's."""
    if spread.mean is None:
        return "-"
    deviation = "" if spread.deviation is None else f" {plus_minus()} {spread.deviation:.1f}"
    return f"{spread.mean:{sign}.1f}{deviation}" + (f" ({spread.count})" if spread.count != most else "")


def _cells(spread: Spread) -> list[float | None]:
    return [spread.count, _rounded(spread.mean), _rounded(spread.deviation)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
