import base64
import io
import itertools
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import rich
import torch
import yaml
from PIL import Image
from rich.console import Console

from lightning_uda.files import LABEL_SPACE_FILE, RECORD_FILE
from lightning_uda.label_spaces import LABEL_SPACES, LabelSpace
from lightning_uda.metrics import MIOU_NOTE, keep_confusion
from lightning_uda.report import ReportError, build_report, load_runs, report
from lightning_uda.report.charts import COLORS, _smooth
from lightning_uda.report.grid_table import metric_of
from lightning_uda.report.notes import notes_of, print_notes
from lightning_uda.report.table import losses_table, table_of
from lightning_uda.tables import append_row

CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)


def matrix_of(iou):
    """A matrix in which classes have these IoUs, in percent; NaN for a class without a pixel.

    All misses are predicted as the first class, so that IoU = hits / pixels for each other one; the first one's hits
    are made to fit.
    """
    first, *others = iou
    present = [value if value == value else 0 for value in others]
    hits = torch.tensor([round(10000 * value) for value in present])
    misses = torch.tensor([10**6 * (value == value) for value in others]).long() - hits
    matrix = torch.diag(torch.cat([torch.zeros(1, dtype=torch.long), hits]))
    matrix[1:, 0] = misses
    matrix[0, 0] = round(first / (100 - first) * int(misses.sum()))
    return matrix


def write_evaluation(folder, step, iou, classes=CLASSES, stage="val", scope=None):
    return keep_confusion(folder, stage, step, scope, matrix_of(iou), classes)


def write_run(
    folder, values, *, method="SourceOnly", classes=CLASSES, steps=(100, 200), mixes=False, stage="val", notes=()
):
    """A run folder as a training leaves it; the IoU of every class is the run's value, of the fourth 5 points more."""
    folder.mkdir(parents=True)
    space = {"name": "demo", "classes": list(classes), "palette": [[i, 99, 200] for i in range(len(classes))]}
    if "Car" in classes:
        space["subsets"] = {"few": ["Road", "Car"]}
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    data = {
        "label_space": str(folder / "space.yaml"),
        "source": {"class_path": "pkg.CamVid"},
        "target": {"class_path": "pkg.Dusk"},
    }
    network = {"class_path": "pkg.DeepLabV2", "init_args": {"backbone": "resnet18"}}
    config = {
        "seed_everything": 7,
        "trainer": {"max_steps": 200, "log_every_n_steps": 10},
        "data": {"class_path": "pkg.UDADataModule", "init_args": data},
        "model": {"class_path": f"pkg.{method}", "init_args": {"network": network}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if notes:
        (folder / "notes.txt").write_text("".join(f"{note}\n" for note in notes))
    for step, value in zip(steps, values, strict=True):
        write_evaluation(folder, step, [value + 5 * (i == 3) for i in range(len(classes))], classes, stage)
        if step:
            write_panels(folder / "panels" / f"step_{step:06d}", round(value), mixes)
    for step in range(9, steps[-1] or 200, 10):
        losses = {"train/loss_source": 1 / step} | ({"train/loss_mixed": 0.5, "train/lambda": 0.9} if mixes else {})
        append_row(folder / "metrics.csv", {"step": step, "train/loss": 1 / step + 0.5 * mixes, **losses})
    return folder


def write_panels(folder, shade, mixes):
    folder.mkdir(parents=True)
    names = [f"val_{i}_{kind}" for i in range(2) for kind in ("image", "mask", "prediction")]
    if mixes:
        names += [f"train_0_{kind}" for kind in ("source", "target", "mixed_image", "mixed_mask", "mixed_weights")]
    for name in names:
        Image.new("RGB", (4, 2), (shade, len(name), int("image" in name))).save(folder / f"{name}.png")


@pytest.fixture
def runs(tmp_path):
    first = write_run(tmp_path / "demo/source_only/version_0", (20.0, 30.0))
    second = write_run(tmp_path / "demo/dacs/version_0", (25.0, 41.26), method="DACS", mixes=True)
    return [first.parent, second.parent]


def text_of(folders):
    """The table as a console shows it."""
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table_of(load_runs(folders)))
    return console.export_text()


class Page(HTMLParser):
    """Collects what the tests look at; `rows` are those of the tables of scores and losses, `tables` further ones."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.words, self._in_cell = [], [], [], [], False
        self.figures, self.tables, self._into = [], {}, self.rows
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "table":
            name = dict(attrs).get("class")
            self._into = self.tables.setdefault(name, []) if name else self.rows
        if tag == "tr":
            self._into.append([])
        if tag in ("td", "th"):
            self._into[-1].append("")
            self._in_cell = True
        if tag == "img":
            self.figures.append((dict(attrs)["alt"], dict(attrs)["src"]))

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.words.append(data)
        if self._in_cell:
            self._into[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def test_page_holds_the_table_with_gains(runs, tmp_path):
    page = page_of(build_report(runs, tmp_path / "report.html"))
    assert page.rows[0] == ["class", "Source only", "DACS", "gain"]
    assert page.rows[1] == ["Sky", "30.0", "41.3", "+11.3"]
    assert page.rows[4] == ["Road", "35.0", "46.3", "+11.3"]
    # (10 * 30 + 35) / 11 and (10 * 41.26 + 46.26) / 11; (35 + 30) / 2 and (46.26 + 41.26) / 2
    assert page.rows[12:14] == [["mIoU", "30.5", "41.7", "+11.2"], ["mIoU (few)", "32.5", "43.8", "+11.3"]]
    assert page.rows[14] == ["loss at the end", "Source only", "DACS"]
    assert len(page.rows) == 1 + 11 + 2 + 1 + 3


def test_best_values_and_losses_are_marked(tmp_path):
    first = write_run(tmp_path / "a", (30.0, 30.0))
    second = write_run(tmp_path / "b", (10.0, 20.0))
    html = build_report([first, second], tmp_path / "report.html").read_text()
    rows = re.findall(r"<tr.*?</tr>", html, flags=re.DOTALL)
    assert re.search(r'class="iou best"[^>]*>35.0<', rows[4])
    assert re.search(r'class="iou"[^>]*>25.0<', rows[4])
    assert '<td class="gain down">-10.0</td>' in rows[4]


def test_page_tells_what_the_runs_were(runs, tmp_path):
    text = page_of(build_report(runs, tmp_path / "report.html")).text
    for expected in ("Source only vs. DACS", "CamVid → Dusk", "DeepLabV2 (resnet18)", "seed 7", "steps 200"):
        assert expected in text
    assert "not finished" not in text
    assert str(tmp_path) not in text


OPTIMISER, BRANCHES = "optimiser: RepeatedSGD, 1/3/4 updates per step (reference)", "ASPP branches: 6, 12 (two of four)"
WARNING = "warning: the sets share <3> images"


def test_notes_say_what_runs_share_once_and_warn(tmp_path, monkeypatch):
    notes = {"a": [OPTIMISER, BRANCHES], "b": [OPTIMISER, "", WARNING], "c": [OPTIMISER, BRANCHES, BRANCHES]}
    runs = load_runs([write_run(tmp_path / name, (20.0, 30.0), notes=lines) for name, lines in notes.items()])
    console = Console(record=True, width=120, file=io.StringIO())
    print_notes(runs, console)
    assert console.export_text(clear=False).splitlines() == [
        OPTIMISER, f"a, c: {BRANCHES}", "warning: b: the sets share <3> images",
    ]  # fmt: skip
    (yellow,) = [line for line in console.export_text(styles=True).splitlines() if "\x1b[33m" in line]
    assert "share <3>" in yellow
    assert [note.titles for note in notes_of(runs[:1])] == [(), ()]

    text = page_of(build_report([run.folder for run in runs], tmp_path / "report.html")).text
    assert text.count(OPTIMISER) == 1
    assert f"a, c: {BRANCHES}" in text
    assert "Warning. b: the sets share <3> images" in text
    assert '<li class="warning">' in (tmp_path / "report.html").read_text()


def test_runs_without_notes_show_none(runs, tmp_path):
    assert load_runs(runs)[0].notes == []
    assert "<li" not in build_report(runs, tmp_path / "report.html").read_text()


def test_page_is_self_contained(runs, tmp_path):
    page = page_of(build_report(runs, tmp_path / "report.html"))
    assert not {"script", "link", "iframe"} & set(page.tags)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert references
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in references)
    html = (tmp_path / "report.html").read_text()
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "#010203" not in html, "ink of the charts follows the page"


def test_pictures_are_those_of_the_last_step(runs, tmp_path):
    page = page_of(build_report(runs, tmp_path / "report.html"))
    captions = [caption for caption, _ in page.figures]
    mixed = ["source image", "target image", "mixed image", "mixed label", "mixed weights"]
    assert captions == ["image", "ground truth", "Source only", "DACS"] * 2 + mixed
    for (_, source), file in zip(page.figures[2:4], ("source_only/version_0", "dacs/version_0"), strict=True):
        embedded = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert embedded == (tmp_path / "demo" / file / "panels/step_000200/val_0_prediction.png").read_bytes()


def test_charts(runs, tmp_path):
    html = build_report(runs, tmp_path / "report.html").read_text()
    titles = re.findall(r"<h3>(.*?)</h3>\s*<svg", html)
    assert titles == [
        "mIoU in %", "lambda, the weight of target pixels", "Losses of Source only", "Losses of DACS",
    ]  # fmt: skip
    charts = re.findall(r"</h3>(<svg.*?</svg>)", html, flags=re.DOTALL)
    assert ">41.7</text>" in charts[0]
    legends = [re.findall(r">(mixed|source|total)</text>", chart) for chart in charts]
    assert legends == [[], [], ["source", "total"], ["mixed", "source", "total"]]


def test_losses_are_named_and_summed_up_on_page_and_console(tmp_path):
    run = write_run(tmp_path / "dacs", (20.0, 30.0), mixes=True)
    other = write_run(tmp_path / "source_only", (20.0, 30.0))
    for step, total in ((300, 0.25), (310, -0.75)):  # 21 and 22 values: the last twentieth is one
        append_row(run / "metrics.csv", {"step": step, "train/loss": total, "train/loss_source": 0.0012})
    expected = [["mixed", "0.5", "-"], ["source", "0.0012", "0.005"], ["total", "-0.75", "0.005"]]
    page = page_of(build_report([run, other], tmp_path / "report.html"))
    assert page.rows[-3:] == expected
    console = Console(width=120, file=io.StringIO())
    console.print(losses_table(load_runs([run, other])))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert all(row in lines for row in expected)


def test_negative_losses_are_in_the_picture(tmp_path):
    run = write_run(tmp_path / "crst", (20.0, 30.0))
    append_row(run / "metrics.csv", {"step": 300, "train/loss_regularizer": -3.0})
    html = build_report([run], tmp_path / "report.html").read_text()
    assert "\u22123</text>" in re.findall(r"</h3>(<svg.*?</svg>)", html, flags=re.DOTALL)[1]


def test_one_run_has_no_gain(runs, tmp_path):
    page = page_of(build_report(runs[:1], tmp_path / "report.html"))
    assert page.rows[0] == ["class", "Source only"]
    assert page.rows[1] == ["Sky", "30.0"]


def test_runs_without_pictures_or_config(tmp_path):
    run = write_run(tmp_path / "plain", (20.0, 30.0), classes=("a <b>", "c"))
    (run / "config.yaml").unlink()
    for file in run.glob("panels/*/*"):
        file.unlink()
    html = build_report([run], tmp_path / "report.html").read_text()
    assert "<img" not in html
    assert "a &lt;b&gt;" in html
    assert page_of(tmp_path / "report.html").rows[1] == ["a <b>", "30.0"]
    (run / "metrics.csv").unlink()
    assert "<h3>Losses" not in build_report([run], tmp_path / "report.html").read_text()


def test_a_class_that_does_not_occur_is_a_dash_and_in_no_mean(tmp_path):
    classes = ("road", "sky", "tram")
    folders = [write_run(tmp_path / name, (20.0, 30.0), classes=classes) for name in "ab"]
    write_evaluation(folders[0], 300, (50, 5, float("nan")), classes)
    page = page_of(build_report(folders, tmp_path / "report.html"))
    assert page.rows[1:5] == [
        ["road", "50.0", "30.0", "-20.0"], ["sky", "5.0", "30.0", "+25.0"], ["tram", "-", "30.0", "-"],
        ["mIoU", "27.5", "30.0", "+2.5"],
    ]  # fmt: skip
    lines = [line.split() for line in text_of(folders).splitlines()]
    assert ["██", "tram", "-", "30.0", "-"] in lines
    assert ["mIoU", "27.5", "30.0", "+2.5"] in lines
    (run,) = load_runs(folders[:1])
    assert run.value("iou_tram") is None
    assert run.scores("iou_tram") == ([100, 200], pytest.approx([20.0, 30.0]))


@pytest.mark.parametrize(
    ("scope", "label"),
    [("at_512x1024", "at 512x1024"), ("within_3px_of_borders", "within 3 px of borders")],
)
def test_scores_in_further_scopes_are_means_of_their_own(tmp_path, scope, label):
    folders = [write_run(tmp_path / name, (20.0, 30.0), classes=("road", "sky")) for name in "ab"]
    for folder, value in zip(folders, (28.0, 29.5), strict=True):
        write_evaluation(folder, 200, (value, value), ("road", "sky"), scope=scope)
    assert load_runs(folders)[0].classes == ["road", "sky"]
    lines = [line.split() for line in text_of(folders).splitlines()]
    assert [*f"mIoU {label}".split(), "28.0", "29.5", "+1.5"] in lines
    assert not any(word.startswith("road_") for line in lines for word in line)
    page = page_of(build_report(folders, tmp_path / "report.html"))
    assert [f"mIoU {label}", "28.0", "29.5", "+1.5"] in page.rows


def test_older_pages_are_kept(runs, tmp_path):
    output = tmp_path / "out" / "report.html"
    first = build_report(runs, output).read_text()
    build_report(runs[:1], output)
    build_report(runs[1:], output)
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.1.html", "report.2.html", "report.html"]
    assert (output.parent / "report.1.html").read_text() == first


def test_a_folder_as_output_gets_the_page(runs, tmp_path):
    assert build_report(runs, tmp_path / "demo") == tmp_path / "demo" / "report.html"
    assert (tmp_path / "demo" / "report.html").is_file()


def test_report_prints_the_table_and_the_path_last(runs, tmp_path, monkeypatch):
    console = Console(record=True, width=50, file=io.StringIO())
    monkeypatch.setattr(rich, "_console", console)
    monkeypatch.chdir(tmp_path)
    report(runs, tmp_path / "a_folder_with_a_rather_long_name" / "report.html")
    lines = console.export_text().splitlines()
    assert next(line for line in lines if "Road" in line).split() == ["██", "Road", "35.0", "46.3", "+11.3"]
    assert next(line for line in lines if "mIoU" in line).split() == ["mIoU", "30.5", "41.7", "+11.2"]
    assert next(line for line in lines if "total" in line).split() == ["total", "0.005", "0.505"]
    assert lines[-1] == str(tmp_path / "a_folder_with_a_rather_long_name" / "report.html")


def test_the_best_evaluation_stands_beside_the_last_as_one_that_target_labels_chose(tmp_path, monkeypatch):
    console = Console(record=True, width=100, file=io.StringIO())
    monkeypatch.setattr(rich, "_console", console)
    falls = write_run(tmp_path / "falls", (20.0, 42.0, 42.0, 30.0), classes=("road", "sky"), steps=(50, 100, 150, 200))
    once = write_run(tmp_path / "once", (30.0,), classes=("road", "sky"), steps=(200,))
    report([falls, once], tmp_path / "report.html")
    page = page_of(tmp_path / "report.html")
    assert page.text.count("best mIoU 42.0 at step 100; that choice uses target labels") == 1
    assert page.rows[3] == ["mIoU", "30.0", "30.0", "+0.0"]
    lines = console.export_text().splitlines()
    assert [line for line in lines if "est mIoU" in line] == [
        "Best mIoU of falls: 42.0 at step 100; that choice uses target labels."
    ]
    (run,) = load_runs([falls])
    assert run.best("iou_sky") == (100, pytest.approx(42.0))
    assert run.best("iou_tram") is None
    assert metric_of(run, "best_miou") == pytest.approx(42.0)
    assert metric_of(run, "miou") == pytest.approx(30.0)
    assert metric_of(run, "best_iou_tram") is None


def test_a_run_that_stopped_early_is_finished_and_says_so(tmp_path):
    note = "stopped early: step 100 of 200, by val/miou, a choice that uses target labels"
    folder = write_run(tmp_path / "dacs", (20.0, 30.0), steps=(50, 100), notes=(note,))
    text = page_of(build_report([folder], tmp_path / "report.html")).text
    assert "not finished" not in text
    assert "steps 100 of 200" in text
    assert note in text


def test_terminal_table(runs):
    table = table_of(load_runs(runs))
    assert [column.header for column in table.columns] == ["class", "Source only", "DACS", "gain"]
    assert table.row_count == 13


def test_the_latest_version_that_trained_is_taken(tmp_path):
    for version in (2, 10):
        write_run(tmp_path / f"dacs/version_{version}", (20.0, 30.0 + version), method="DACS")
    only_validated = write_run(tmp_path / "dacs/version_11", (50.0,), method="DACS", steps=(200,))
    (only_validated / "metrics.csv").write_text("epoch,step,val/miou\n0,200,50.0\n")
    (tmp_path / "dacs/version_12").mkdir()
    assert load_runs([only_validated])[0].finished
    (run,) = load_runs([tmp_path / "dacs"])
    assert run.folder.name == "version_10"
    assert run.value("miou") == pytest.approx(40 + 5 / 11, abs=1e-3)


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / f"dacs/version_{version}", (20.0, 30.0), method="DACS") for version in (0, 1)]
    assert [run.title for run in load_runs(folders)] == ["DACS (dacs/version_0)", "DACS (dacs/version_1)"]
    folders = [write_run(tmp_path / f"seed_{seed}/dacs/version_0", (20.0, 30.0), method="DACS") for seed in (0, 1)]
    assert [run.title for run in load_runs(folders)] == [f"DACS (seed_{seed}/dacs/version_0)" for seed in (0, 1)]


def test_of_a_step_evaluated_twice_the_latest_counts(tmp_path):
    folder = write_run(tmp_path / "dacs", (20.0, 30.0, 35.0), steps=(100, 200, 201), classes=("road", "sky"))
    assert write_evaluation(folder, 200, (33.0, 33.0), ("road", "sky")).name == "val_step_000200.2.csv"
    (run,) = load_runs([folder])
    assert run.scores("miou") == ([100, 200, 201], pytest.approx([20.0, 33.0, 35.0], abs=1e-3))


def test_an_unfinished_run_is_named(tmp_path, monkeypatch):
    console = Console(record=True, width=80, file=io.StringIO())
    monkeypatch.setattr(rich, "_console", console)
    report([write_run(tmp_path / "dacs", (20.0, 30.0), steps=(50, 100))], tmp_path / "report.html")
    assert "not finished: step 100 of 200" in page_of(tmp_path / "report.html").text
    assert "dacs is not finished: step 100 of 200." in console.export_text()


@pytest.mark.parametrize(("planned", "text"), [(200, "200"), (300, "200 of 300")])
def test_steps_of_self_training_are_those_of_its_rounds(tmp_path, planned, text):
    folder = write_run(tmp_path / "cbst", (20.0, 30.0))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["max_steps"] = -1
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    append_row(folder / "metrics.csv", {"step": 0, "train/loss_source": "", "rounds/steps": planned})
    run = load_runs([folder])[0]
    assert run.max_steps == planned
    assert run.finished == (planned == 200)


def test_test_evaluations_serve_where_there_is_no_validation(tmp_path):
    run = write_run(tmp_path / "dacs", (30.0,), steps=(0,), stage="test")
    assert "IoU on the test images" in page_of(build_report([run], tmp_path / "report.html")).text


def test_runs_scored_on_different_sets_are_not_compared(tmp_path):
    validated = write_run(tmp_path / "a", (30.0,), steps=(200,))
    tested = write_run(tmp_path / "b", (30.0,), steps=(200,), stage="test")
    with pytest.raises(ReportError, match=r"a was scored on the val images, .*b on the test images"):
        load_runs([validated, tested])


def test_missing_folder(tmp_path):
    with pytest.raises(ReportError, match="nowhere is no folder"):
        build_report([tmp_path / "nowhere"], tmp_path / "report.html")


def test_a_run_that_was_never_evaluated(runs, tmp_path):
    shutil.rmtree(runs[0] / "version_0/confusions")
    said = r"version_0 holds no confusion matrix \(confusions/val_step_<step>\.csv\), which a run writes at its first"
    with pytest.raises(ReportError, match=said):
        build_report(runs, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_run_of_an_older_version_is_told_what_to_do(runs, tmp_path):
    shutil.rmtree(runs[0] / "version_0/confusions")
    append_row(runs[0] / "version_0/iou.csv", {"step": 100, "stage": "val", "miou": 20.0})
    said = "only the iou.csv of an older version.*validate --config .*version_0/config.yaml --ckpt_path FILE"
    with pytest.raises(ReportError, match=said):
        build_report(runs, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("confusions/val_step_000200.csv", b"", "expected a confusion matrix"),
        ("confusions/val_step_000200.csv", b"\n", "expected a confusion matrix"),
        ("confusions/val_step_000200.csv", b"a,b\n1,2\n", "expected a confusion matrix"),
        ("confusions/val_step_000200.csv", b"truth,a,b\na,-1,0\nb,0,1\n", "expected a confusion matrix"),
        ("confusions/val_step_000200.csv", b"truth,a,b\na,1,0\nb,0,1\n", r"found the classes \['a', 'b'\]; expected"),
        ("confusions/val_step_000200.csv", b"\xff", "found bytes that aren't text"),
        ("metrics.csv", b"\xff", "found bytes that aren't text"),
        ("metrics.csv", b"step,train/loss\nx,1\n", "found 'x' as 'step' in row 1; expected a whole number"),
        ("metrics.csv", b"step,train/loss\n1,x\n", "found 'x' as 'train/loss' in row 1; expected a number"),
        ("metrics.csv", b"a,b\n1,2\n", "found no column 'step'"),
        ("notes.txt", b"\xff", "found bytes that aren't text"),
        ("config.yaml", b"3", "found 3; expected a mapping"),
        ("config.yaml", b"trainer: x", "found trainer: 'x'; expected a mapping"),
        ("config.yaml", b"trainer: {log_every_n_steps: x}", "found trainer.log_every_n_steps: 'x'; expected a whole"),
        ("config.yaml", b"ckpt_path: [a]", r"found ckpt_path: \['a'\]; expected a text"),
        ("run.yaml", b"[", "can't be read as YAML"),
        ("run.yaml", b"[]", r"found \[\]; expected a mapping"),
        ("run.yaml", b"versions: 3", "found versions: 3; expected a mapping"),
        ("run.yaml", b"data: 3", "found data: 3; expected a mapping"),
        ("label_space.yaml", b"", "expected a mapping with a `classes` list"),
        ("label_space.yaml", b"3", "expected a mapping with a `classes` list"),
        ("label_space.yaml", b"[]", "expected a mapping with a `classes` list"),
        ("label_space.yaml", b"a: [", "can't be read as YAML"),
        ("label_space.yaml", b"classes: 3", "expected a mapping with a `classes` list"),
        ("label_space.yaml", b"classes: [a, b]\n1: 2\nc: 3", r"unknown keys \['1', 'c'\]"),
        ("label_space.yaml", b"classes: [a]", "expected 2 to 253 distinct names"),
        ("panels/step_000200/val_extremes.csv", b"picture,image,miou\nworst_0,a,x\n", "found 'x' as 'miou'"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(file, content, message, tmp_path):
    run = write_run(tmp_path / "dacs", (20.0, 30.0))
    (run / file).write_bytes(content)
    with pytest.raises(ReportError, match=rf"{re.escape(file)}: .*{message}") as error:
        build_report([run], tmp_path / "report.html")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_what_a_run_does_not_tell_is_left_out(tmp_path):
    run = write_run(tmp_path / "dacs", (20.0, 30.0))
    (run / "metrics.csv").write_text("")
    (run / "config.yaml").write_text("trainer: null\nmodel: 3\ndata: 3")
    (run / "run.yaml").write_text("versions: null\ndata: null")
    (run / "panels/step_last").mkdir()
    assert build_report([run], tmp_path / "report.html").is_file()


def test_the_colours_of_a_run_come_before_those_of_a_built_in_space_of_the_same_names(tmp_path):
    folder = write_run(tmp_path / "a", (20.0, 30.0))
    own = LabelSpace("mine", CLASSES, tuple((i, 99, 200) for i in range(11)), {"few": ("Road", "Car")})
    (folder / LABEL_SPACE_FILE).write_text(own.as_yaml())
    (folder / "space.yaml").unlink()  # what its config names
    assert load_runs([folder])[0].label_space == own
    assert "background:rgb(0, 99, 200)" in build_report([folder], tmp_path / "report.html").read_text()
    (folder / LABEL_SPACE_FILE).unlink()
    assert load_runs([folder])[0].label_space.palette == ((128, 128, 128),) * 11
    (folder / "config.yaml").unlink()  # no word of another
    assert load_runs([folder])[0].label_space == LABEL_SPACES["camvid"]


def test_classes_of_a_label_space_that_is_gone_are_grey(tmp_path):
    folder = write_run(tmp_path / "b", (20.0, 30.0), classes=("road", "sky"))
    (folder / "space.yaml").unlink()
    assert load_runs([folder])[0].label_space.palette == ((128, 128, 128),) * 2
    assert 'class="panel legend"' not in build_report([folder], tmp_path / "report.html").read_text()


def test_runs_of_different_classes(runs, tmp_path):
    other = write_run(tmp_path / "other", (20.0, 30.0), classes=(*CLASSES[:-1], "Tram"))
    with pytest.raises(ReportError, match=r"different label spaces.*\['Bicyclist', 'Tram'\]"):
        build_report([*runs, other], tmp_path / "report.html")


def test_a_training_that_logged_no_loss_comes_before_a_later_validation(tmp_path):
    trained = write_run(tmp_path / "dacs/version_0", (30.0,), method="DACS", steps=(5,), notes=("optimiser: SGD",))
    validated = write_run(tmp_path / "dacs/version_1", (50.0,), method="DACS", steps=(5,))
    for folder in (trained, validated):
        (folder / "metrics.csv").write_text("epoch,step,val/miou\n0,4,30.0\n")
    assert load_runs([tmp_path / "dacs"])[0].folder == trained


@pytest.mark.parametrize("moved", [False, True])
def test_runs_that_go_on_from_each_other_are_one_curve(tmp_path, moved):
    first = write_run(tmp_path / "old/dacs/version_0", (10.0, 20.0, 99.0), steps=(50, 109, 150), classes=("a", "b"))
    second = write_run(tmp_path / "old/dacs/version_1", (21.0, 30.0), steps=(130, 250), classes=("a", "b"))
    third = write_run(tmp_path / "old/dacs/version_2", (40.0,), steps=(300,), classes=("a", "b"))
    for folder, before, steps in ((second, first, range(109, 250, 10)), (third, second, range(209, 300, 10))):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["ckpt_path"] = str(before / "checkpoints/last.ckpt")
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "metrics.csv").unlink()
        for step in steps:
            append_row(folder / "metrics.csv", {"step": step, "train/loss": step, "train/loss_late": 1.0})
    if moved:
        (tmp_path / "old").rename(tmp_path / "new")
        third = tmp_path / "new/dacs/version_2"
    (run,) = load_runs([third])
    steps, losses = run.curve("train/loss")
    assert steps == [*range(9, 300, 10)]
    assert losses[9:11] == pytest.approx([1 / 99, 109], rel=1e-3)
    assert losses[19:21] == pytest.approx([199, 209])
    assert run.scores("iou_a") == ([50, 109, 130, 300], pytest.approx([10.0, 20.0, 21.0, 40.0]))
    text = page_of(build_report([third], tmp_path / "report.html")).text
    assert "dacs/version_0, " in text
    assert "goes on from" in text


def test_the_mean_is_explained_and_classes_without_a_pixel_are_warned_of(tmp_path, monkeypatch):
    console = Console(record=True, width=300, file=io.StringIO())
    monkeypatch.setattr(rich, "_console", console)
    folder = write_run(tmp_path / "dacs", (20.0, 30.0), classes=("road", "sky", "tram"))
    report([folder], tmp_path / "report.html")
    warning = "No pixel of the validation images is tram"
    assert MIOU_NOTE in (text := console.export_text())
    assert warning not in text
    write_evaluation(folder, 200, (50.0, 5.0, float("nan")), ("road", "sky", "tram"))
    report([folder], tmp_path / "report.html")
    assert f"warning: {warning}" in console.export_text()
    page = page_of(tmp_path / "report.html").text
    assert MIOU_NOTE in page
    assert f"Warning. {warning}" in page


def test_gains_are_over_the_chosen_run(tmp_path, monkeypatch):
    console = Console(record=True, width=200, file=io.StringIO())
    monkeypatch.setattr(rich, "_console", console)
    names = {"a": 30.0, "b": 20.0, "c": 45.0}
    a, b, c = (write_run(tmp_path / name, (10.0, value), classes=("road", "sky")) for name, value in names.items())
    report([a, b, c], tmp_path / "report.html", against=b)
    rows = page_of(tmp_path / "report.html").rows
    assert rows[0] == ["class", "b", "a", "c", "gain", "gain"]
    assert rows[1] == ["road", "20.0", "30.0", "45.0", "+10.0", "+25.0"]
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["██", "road", "20.0", "30.0", "45.0", "+10.0", "+25.0"] in lines
    assert page_of(build_report([a, c], tmp_path / "report.html", against=b)).rows == rows
    assert page_of(build_report([a], tmp_path / "report.html", against=b)).rows[1] == ["road", "20.0", "30.0", "+10.0"]


def test_the_confusion_matrix_says_what_was_taken_for_what(tmp_path):
    folder = write_run(tmp_path / "dacs", (20.0, 30.0), classes=("road", "sky", "tram"))
    matrix = torch.tensor([[150, 45, 5], [1, 999, 0], [0, 0, 0]])
    keep_confusion(folder, "val", 200, None, matrix, ("road", "sky", "tram"))
    page = page_of(build_report([folder], tmp_path / "report.html"))
    assert page.tables["matrix"] == [
        ["", "road", "sky", "tram"], ["road", "75", "22", "2"], ["sky", "", "100", ""], ["tram", "-", "-", "-"],
    ]  # fmt: skip


def test_every_class_has_its_curve(tmp_path):
    folders = [
        write_run(tmp_path / name, values, classes=("road", "sky"))
        for name, values in (("a", (20.0, 40.0)), ("b", (10.0, 30.0)))
    ]
    html = build_report(folders, tmp_path / "report.html").read_text()
    lines = re.findall(r'<polyline points="(.*?)" stroke="(.*?)" stroke-dasharray="(.*?)"', html)
    assert [points for points, *_ in lines[:2]] == ["60.0,20.0 120.0,0.0", "60.0,30.0 120.0,10.0"]  # of 40 in height
    assert len(lines) == 4
    assert lines[0][1:] != lines[1][1:]
    assert lines[0][2] != lines[1][2]
    once = write_run(tmp_path / "once", (20.0,), steps=(200,))
    assert "<polyline" not in build_report([once], tmp_path / "report.html").read_text()


def test_worst_and_best_images_are_shown_with_their_scores(tmp_path):
    folder = write_run(tmp_path / "dacs", (20.0, 30.0), classes=("road", "sky"))
    panels = folder / "panels/step_000200"
    table = "picture,image,miou\nworst_0,night <1>,3.25\nbest_0,noon,91.0\n"
    (panels / "val_extremes.csv").write_text(table)
    for picture in ("worst_0", "best_0"):
        for kind in ("image", "mask", "prediction", "errors"):
            Image.new("RGB", (2, 2)).save(panels / f"val_{picture}_{kind}.png")
    page = page_of(build_report([folder], tmp_path / "report.html"))
    assert "worst: night <1>, mIoU 3.2" in page.text
    assert "best: noon, mIoU 91.0" in page.text
    assert [caption for caption, _ in page.figures][-4:] == ["image", "ground truth", "prediction", "where it is wrong"]


def test_pictures_are_enlarged_without_a_script(runs, tmp_path):
    html = build_report(runs, tmp_path / "report.html").read_text()
    assert html.count('<input type="checkbox"') == html.count("<img") > 0
    assert ".zoom input:checked + img" in html
    assert "<script" not in html


def test_the_page_says_what_was_run(tmp_path):
    folders = [write_run(tmp_path / name, (20.0, 30.0)) for name in "ab"]
    record = {
        "versions": {"torch": "2.9.1"},
        "git": "abcdef123456, 1 file changed",
        "data": {"source": 2975, "target": 12},
    }
    (folders[0] / RECORD_FILE).write_text(yaml.safe_dump(record))
    config = yaml.safe_load((folders[1] / "config.yaml").read_text())
    network = config["model"]["init_args"]["network"]
    network["init_args"]["backbone"] = {"class_path": "pkg.TimmBackbone", "init_args": {"pretrained": True}}
    config["model"]["init_args"]["init_from"] = "runs/x"
    (folders[1] / "config.yaml").write_text(yaml.safe_dump(config))
    rows = page_of(build_report(folders, tmp_path / "report.html")).tables["record"]
    assert rows[:3] == [
        ["", "a", "b"],
        ["source", "CamVid, 2975 images", "CamVid"],
        ["target", "Dusk, 12 images", "Dusk"],
    ]
    for row in (
        ["weights", "random", "init_from: runs/x, pretrained: True"], ["seed", "7", "7"],
        ["git", "abcdef123456, 1 file changed", ""], ["torch", "2.9.1", ""],
    ):  # fmt: skip
        assert row in rows


DICHROMACY = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab_of(color, sight):
    """CIELAB of a colour such as #0072b2, as an eye sees it."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(sight) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in to_xyz @ seen / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colour_blind_eyes_tell_runs_and_gains_from_losses(runs, tmp_path):
    html = build_report(runs, tmp_path / "report.html").read_text()
    ups, downs = (re.findall(rf"--{name}: (#\w+)", html) for name in ("up", "down"))
    assert len(ups) == len(downs) == 2  # light and dark
    pairs = [(*pair, 15) for pair in itertools.combinations(COLORS, 2)]
    pairs += [(up, down, 50) for up, down in zip(ups, downs, strict=True)]
    for sight in (np.eye(3), *DICHROMACY.values()):
        for one, other, distance in pairs:
            assert np.linalg.norm(lab_of(one, sight) - lab_of(other, sight)) > distance


def test_no_runs(tmp_path):
    with pytest.raises(ReportError, match="no run folder"):
        build_report([], tmp_path / "report.html")


def test_long_curves_are_smoothed_around_their_points():
    line = np.linspace(0, 1, 200)
    smooth = np.array(_smooth((line + 0.1 * (-1) ** np.arange(200)).tolist()))
    np.testing.assert_allclose(smooth[5:-5], line[5:-5], atol=0.02)
    assert _smooth([1.0, 3.0]) == [1.0, 3.0]
