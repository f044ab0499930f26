import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import rich
import yaml
from PIL import Image
from rich.console import Console

from lightning_uda.callbacks.iou_table import append_row
from lightning_uda.cli import main
from lightning_uda.networks import CaffeDeepLabV2, DeepLabV2
from lightning_uda.report import ReportError, build_report, format_table, load_runs, report
from lightning_uda.report.settings import settings_lines, settings_of

CONFIGS = Path(__file__).parents[1] / "configs"
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


def write_run(
    folder, values, *, method="SourceOnly", classes=CLASSES, steps=(100, 200), mixes=False, stage="val", **model
):
    """A run folder as a training leaves it; the IoU of every class is the run's value, of the fourth 5 points more."""
    folder.mkdir(parents=True)
    data = {"label_space": "camvid", "source": {"class_path": "pkg.CamVid"}, "target": {"class_path": "pkg.Dusk"}}
    network = {"class_path": "pkg.DeepLabV2", "init_args": {"backbone": "resnet18"}}
    config = {
        "seed_everything": 7,
        "trainer": {"max_steps": 200, "log_every_n_steps": 10},
        "data": {"class_path": "pkg.UDADataModule", "init_args": data},
        "model": {"class_path": f"pkg.{method}", "init_args": {"network": network, **model}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for step, value in zip(steps, values, strict=True):
        iou = {f"iou_{name}": value + 5 * (i == 3) for i, name in enumerate(classes)}
        append_row(folder / "iou.csv", {"step": step, "stage": stage, "miou": value, "miou_few": value / 2, **iou})
        if step:
            write_panels(folder / "panels" / f"step_{step:06d}", round(value), mixes)
    for step in range(9, steps[-1] or 200, 10):
        row = {"step": step, "train/loss_source": 1 / step}
        append_row(
            folder / "metrics.csv", row | ({"train/loss_mixed": 0.5, "train/pixel_weight": 0.9} if mixes else {})
        )
    return folder


def write_panels(folder, shade, mixes):
    folder.mkdir(parents=True)
    names = [f"val_{i}_{kind}" for i in range(2) for kind in ("image", "mask", "prediction")]
    if mixes:
        names += [f"train_0_{kind}" for kind in ("source", "target", "mixed_image", "mixed_mask", "pixel_weights")]
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
    console.print(format_table(folders))
    return console.export_text()


class Page(HTMLParser):
    """Collects what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.words, self._in_cell = [], [], [], [], False
        self.figures = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        if tag == "img":
            self.figures.append((dict(attrs)["alt"], dict(attrs)["src"]))

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.words.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

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
    assert page.rows[-2:] == [["mIoU", "30.0", "41.3", "+11.3"], ["mIoU (few)", "15.0", "20.6", "+5.6"]]
    assert len(page.rows) == 1 + 11 + 2


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
    for expected in ("Source only vs. DACS", "CamVid → Dusk", "DeepLabV2 (resnet18)", "seed 7", "steps 200", "torch 2"):
        assert expected in text
    assert "not finished" not in text
    assert str(tmp_path) not in text


def part(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


TWO, FOUR = "6, 12 (two of four, reference)", "6, 12, 18, 24 (all four)"


@pytest.mark.parametrize(
    ("optimizer", "network", "expected"),
    [
        (part("torch.optim.SGD", nesterov=False), part("pkg.CaffeDeepLabV2", dilations=[6, 12]),
         ("SGD, one update per step (clean)", TWO)),
        (part("torch.optim.SGD", nesterov=True), part("pkg.CaffeDeepLabV2", dilations=[6, 12, 18, 24]),
         ("SGD with Nesterov momentum, one update per step (clean)", FOUR)),
        (part("lightning_uda.optim.RepeatedSGD"), part("pkg.CaffeDeepLabV2", dilations=[6, 12]),
         ("RepeatedSGD, 1/3/4 updates per step (reference)", TWO)),
        (part("lightning_uda.optim.RepeatedSGD"), part("pkg.DeepLabV2", dilations=[6]),
         ("RepeatedSGD, one update per step (clean)", "6")),
        (part("lightning_uda.optim.RepeatedSGD"), part("my.Net"),
         ("RepeatedSGD, updates per step as Net declares", None)),
        (None, part("my.Net"), ("not recorded", None)),
    ],
)  # fmt: skip
def test_settings_say_what_was_taken_over_from_the_published_program(tmp_path, optimizer, network, expected):
    folder = write_run(tmp_path / "a", (20.0, 30.0), optimizer=optimizer, network=network)
    settings = settings_of(load_runs([folder])[0].config)
    assert (settings["optimiser"], settings.get("ASPP branches")) == expected
    text = page_of(build_report([folder], tmp_path / "report.html")).text
    assert all(value in text for value in expected if value)


def test_networks_declare_the_updates_that_the_report_names():
    small = {"blocks": (1, 1, 1, 1), "planes": (4, 4, 4, 4)}
    for network, repeats in ((CaffeDeepLabV2(2, **small), {1, 3, 4}), (DeepLabV2(2, "resnet10t"), {1})):
        assert {group["update_repeats"] for group in network.parameter_groups()} == repeats


@pytest.mark.parametrize("pair", ["gta5_to_cityscapes", "synthia_to_cityscapes"])
def test_the_reference_preset_differs_in_the_optimiser_only(pair, capsys):
    configs = []
    for name in ("dacs", "dacs_reference"):
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(CONFIGS / f"experiment/{pair}/{name}.yaml"), "--print_config"])
        configs.append(yaml.safe_load(capsys.readouterr().out))
        assert configs[-1].pop("name") == f"{pair}/{name}"
    clean, reference = (settings_of(config) for config in configs)
    assert clean == {"optimiser": "SGD, one update per step (clean)", "ASPP branches": TWO}
    assert reference == {"optimiser": "RepeatedSGD, 1/3/4 updates per step (reference)", "ASPP branches": TWO}
    optimizers = [config["model"]["init_args"].pop("optimizer")["init_args"] for config in configs]
    assert optimizers[1] == {"lr": 2.5e-4, "momentum": 0.9, "weight_decay": 5e-4}
    assert {name: optimizers[0][name] for name in optimizers[1]} == optimizers[1]
    assert configs[0] == configs[1]


def test_the_console_says_the_settings_once_if_all_runs_share_them(tmp_path):
    optimizers = {"a": "SGD", "b": "SGD", "c": "AdamW"}
    folders = [write_run(tmp_path / name, (20.0, 30.0), optimizer=part(path)) for name, path in optimizers.items()]
    runs = load_runs(folders)
    assert settings_lines(runs[:2]) == ["optimiser: SGD, one update per step (clean)"]
    assert settings_lines(runs) == [
        "a, b: optimiser: SGD, one update per step (clean)",
        "c: optimiser: AdamW, one update per step (clean)",
    ]


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
    mixed = ["source image", "target image", "mixed image", "mixed label", "pixel weights"]
    assert captions == ["image", "ground truth", "Source only", "DACS"] * 2 + mixed
    for (_, source), file in zip(page.figures[2:4], ("source_only/version_0", "dacs/version_0"), strict=True):
        embedded = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert embedded == (tmp_path / "demo" / file / "panels/step_000200/val_0_prediction.png").read_bytes()


def test_charts(runs, tmp_path):
    html = build_report(runs, tmp_path / "report.html").read_text()
    titles = re.findall(r"<h3>(.*?)</h3>\s*<svg", html)
    assert titles == [
        "mIoU in %", "Mean pixel weight of the mixed images", "Losses of Source only", "Losses of DACS",
    ]  # fmt: skip
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert ">41.3</text>" in charts[0]
    assert "loss mixed" in charts[3]
    assert "loss mixed" not in charts[2]


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


def test_a_class_that_does_not_occur(tmp_path):
    folders = [write_run(tmp_path / name, (20.0, 30.0), classes=("road", "sky")) for name in "ab"]
    append_row(
        folders[0] / "iou.csv", {"step": 300, "stage": "val", "miou": 30.0, "iou_road": float("nan"), "iou_sky": 5.0}
    )
    page = page_of(build_report(folders, tmp_path / "report.html"))
    assert page.rows[1:3] == [["road", "-", "30.0", "-"], ["sky", "5.0", "30.0", "+25.0"]]


def test_scores_at_further_sizes_are_means_of_their_own(tmp_path):
    folders = [write_run(tmp_path / name, (20.0, 30.0), classes=("road", "sky")) for name in "ab"]
    for folder, value in zip(folders, (28.0, 29.5), strict=True):
        row = {"step": 300, "stage": "val", "miou": 30.0, "iou_road": 1.0, "iou_sky": 5.0}
        append_row(folder / "iou.csv", row | {"miou_at_512x1024": value, "iou_road_at_512x1024": 2.0})
    assert load_runs(folders)[0].classes == ["road", "sky"]
    lines = [line.split() for line in text_of(folders).splitlines()]
    assert ["mIoU", "at", "512x1024", "28.0", "29.5", "+1.5"] in lines
    assert not any("road_at" in word for line in lines for word in line)


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
    assert next(line for line in lines if "mIoU" in line).split() == ["mIoU", "30.0", "41.3", "+11.3"]
    assert "optimiser: not recorded" in lines
    assert lines[-1] == str(tmp_path / "a_folder_with_a_rather_long_name" / "report.html")


def test_terminal_table(runs):
    table = format_table(runs)
    assert [column.header for column in table.columns] == ["class", "Source only", "DACS", "gain"]
    assert table.row_count == 13


def test_the_latest_version_that_trained_is_taken(tmp_path):
    for version in (2, 10):
        write_run(tmp_path / f"dacs/version_{version}", (20.0, 30.0 + version), method="DACS")
    write_run(tmp_path / "dacs/version_11", (50.0,), method="DACS", steps=(0,))
    (tmp_path / "dacs/version_12").mkdir()
    (run,) = load_runs([tmp_path / "dacs"])
    assert run.folder.name == "version_10"
    assert run.value("miou") == 40.0


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / f"dacs/version_{version}", (20.0, 30.0), method="DACS") for version in (0, 1)]
    assert [run.title for run in load_runs(folders)] == ["DACS (dacs/version_0)", "DACS (dacs/version_1)"]


def test_a_step_evaluated_twice_counts_once(tmp_path):
    folder = write_run(tmp_path / "dacs", (20.0, 30.0, 35.0), steps=(100, 200, 201))
    append_row(folder / "iou.csv", {"step": 200, "stage": "val", "miou": 33.0})
    (run,) = load_runs([folder])
    assert [(row["step"], row["miou"]) for row in run.evaluations] == [
        ("100", "20.0"),
        ("200", "33.0"),
        ("201", "35.0"),
    ]


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


def test_missing_folder(tmp_path):
    with pytest.raises(ReportError, match="nowhere is no folder"):
        build_report([tmp_path / "nowhere"], tmp_path / "report.html")


@pytest.mark.parametrize("missing", ["metrics.csv", "iou.csv"])
def test_folder_without_its_files(runs, tmp_path, missing):
    (runs[0] / "version_0" / missing).unlink()
    with pytest.raises(ReportError, match=rf"version_0 holds no {missing}; expected both"):
        build_report(runs, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_was_never_evaluated(tmp_path):
    run = write_run(tmp_path / "dacs", (20.0, 30.0))
    (run / "iou.csv").write_text((run / "iou.csv").read_text().splitlines()[0] + "\n")
    with pytest.raises(ReportError, match="holds no evaluation"):
        build_report([run], tmp_path / "report.html")


def test_runs_of_different_classes(runs, tmp_path):
    other = write_run(tmp_path / "other", (20.0, 30.0), classes=(*CLASSES[:-1], "Tram"))
    with pytest.raises(ReportError, match=r"different label spaces.*\['Bicyclist', 'Tram'\]"):
        build_report([*runs, other], tmp_path / "report.html")


def test_no_runs(tmp_path):
    with pytest.raises(ReportError, match="no run folder"):
        build_report([], tmp_path / "report.html")


def test_long_curves_are_smoothed_around_their_points():
    from lightning_uda.report.charts import _smooth

    line = np.linspace(0, 1, 200)
    smooth = np.array(_smooth((line + 0.1 * (-1) ** np.arange(200)).tolist()))
    np.testing.assert_allclose(smooth[5:-5], line[5:-5], atol=0.02)
    assert _smooth([1.0, 3.0]) == [1.0, 3.0]
