"""`lightning-uda analyze`, of a checkpoint as it comes from training."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_uda.__main__ import main
from lightning_uda.cli import run_trainer
from lightning_uda.commands.feature_analysis import measure
from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.label_spaces import get_label_space
from lightning_uda.loading import PartsCLI
from lightning_uda.report import feature_figures
from lightning_uda.report.feature_figures import embed, similarity_figure, tsne_figure
from tests.fixtures.choices import few_of
from tests.fixtures.stages import METHODS, run_stages, write_config
from tests.fixtures.tiny import TinyDataset, tiny_network
from tests.metrics.test_feature_space import by_loops

ROOT = Path(__file__).parents[2]
CLASSES = get_label_space("camvid").classes


def table(folder):
    with (folder / "classes.csv").open() as file:
        return {row.pop("class"): {k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)}


def column(rows, name):
    return np.array([row[name] for row in rows.values()])


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        main(["analyze", *arguments])
    return str(error.value.code) + capsys.readouterr().err


def pixels_of(network, dataset):
    """Features (P, 8) and classes (P,) of all images: each fourth row and column of the labels."""
    images = np.stack([dataset.load_image(i) for i in range(len(dataset))])
    labels = np.stack([dataset.load_label(i)[::4, ::4] for i in range(len(dataset))])
    with torch.no_grad():
        normalized = network.normalized(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
        features = network.backbone(normalized)
    return features.permute(0, 2, 3, 1).reshape(-1, 8).double().numpy(), labels.ravel()


def network_of(checkpoint, part):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    network = tiny_network().eval()
    network.load_state_dict({k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")})
    return network


def check(rows, network):
    """Compares a table with figures by loops."""
    assert list(rows) == list(CLASSES)
    means = {}
    for domain, seed in (("source", 0), ("target", 2)):
        features, labels = pixels_of(network, TinyDataset(4, seed=seed))
        ccd, pdd, skipped = by_loops(features, labels, len(CLASSES))
        np.testing.assert_allclose(column(rows, f"ccd_{domain}"), ccd, rtol=1e-5)
        np.testing.assert_allclose(column(rows, f"pdd_{domain}"), pdd, rtol=1e-5)
        assert column(rows, f"skipped_{domain}").tolist() == skipped
        assert column(rows, f"pixels_{domain}").tolist() == [(labels == c).sum() for c in range(len(CLASSES))]
        means[domain] = [features[labels == c].mean(axis=0) for c in range(3)]
    a, b = np.stack(means["source"]), np.stack(means["target"])
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(column(rows, "similarity")[:3], cosines, rtol=1e-5)
    assert np.isnan(column(rows, "similarity")[3:]).all()


@pytest.mark.parametrize(("evaluated", "part"), [("student", "student"), ("teacher", "teacher")])
def test_a_checkpoint_of_dacs_is_analyzed_as_it_is_evaluated(evaluated, part, tmp_path, capsys):
    run = run_stages(tmp_path, "DACS", stages=("fit",))["fit"]
    checkpoint = run / "checkpoints/step=4.ckpt"
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    options = ["--ckpt_path", str(checkpoint), "--model.evaluate", evaluated, "--no_tsne"]
    main(["analyze", "--output", str(tmp_path / "out"), "--config", str(run / "config.yaml"), *options])
    out = capsys.readouterr().out
    assert "Feature space of DACS at step 4" in out
    assert "denominator within 1e-6 of 0: " in out
    check(table(tmp_path / "out"), network_of(checkpoint, part))
    made = {"out", "out/classes.csv", "out/similarity.png"}
    assert {str(path.relative_to(tmp_path)) for path in set(tmp_path.rglob("*")) - set(before)} == made
    assert min(Image.open(tmp_path / "out/similarity.png").size) > 600


def test_ada_bn_is_analyzed_with_the_statistics_of_the_target(tmp_path):
    run = run_stages(tmp_path, "AdaBN", stages=("fit",))["fit"]
    checkpoint = run / "checkpoints/step=4.ckpt"
    options = ["--config", str(tmp_path / "AdaBN.yaml"), "--ckpt_path", str(checkpoint), "--no_tsne"]
    main(["analyze", *options, "--output", str(tmp_path / "out")])
    network = network_of(checkpoint, "student")
    network.backbone[1].reset_running_stats()
    network.backbone[1].momentum = None
    network.backbone[1].train()
    pixels_of(network, TinyDataset(4, seed=1))  # the target's training images, as one batch
    check(table(tmp_path / "out"), network.eval())


@pytest.mark.parametrize("method", few_of(METHODS, "T2SDA", "SelfTraining"))
def test_every_method_is_analyzed(method, tmp_path, caplog):
    config = write_config(tmp_path, method)
    main(["analyze", "--config", config, "--output", str(tmp_path / "out"), "--no_tsne"])
    assert "no --ckpt_path: the network is run as it was made" in caplog.text
    assert np.isfinite(np.array([list(row.values()) for row in table(tmp_path / "out").values()])[:3]).all()
    assert not (tmp_path / method).exists()


@pytest.mark.parametrize("network", ["deeplab_v2_resnet18", "hrda_mit_b0", "segformer_mit_b0"])
def test_networks_are_analyzed(network, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    few = ["--data.source.length", "2", "--data.val.length", "2", "--data.num_workers", "0", "--no_tsne"]
    few += ["--model.network", f"configs/network/{network}.yaml", "--model.network.weights", "null"]
    config = "configs/experiment/minicity/source_only.yaml"
    main(["analyze", "--config", config, *few, "--output", str(tmp_path / "out")])
    rows = table(tmp_path / "out")
    assert 0 < column(rows, "pixels_source").sum() <= 2 * 96 * 192 / 8**2
    assert np.isfinite(column(rows, "similarity")).any()


def test_images_are_spread_over_a_set_of_any_sizes_and_the_last_checkpoint_is_found(tmp_path, capsys):
    run_stages(tmp_path, "SourceOnly", stages=("fit",))
    capsys.readouterr()
    options = ["--config", str(tmp_path / "SourceOnly.yaml"), "--no_tsne", "--ckpt_path", "last", "--num_images", "2"]
    main(["analyze", *options, "--output", str(tmp_path / "out")])
    assert "SourceOnly at step 4" in capsys.readouterr().out
    labels = np.stack([TinyDataset(4, seed=0).load_label(i)[::4, ::4] for i in (0, 3)])
    assert column(table(tmp_path / "out"), "pixels_source")[:3].tolist() == [(labels == c).sum() for c in range(3)]


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, "SourceOnly")


def changed(config, name, value):
    """The config with another dataset."""
    content = yaml.safe_load(Path(config).read_text())
    content["data"]["init_args"][name] = value
    Path(config).write_text(yaml.safe_dump(content))
    return config


def test_what_is_missing_is_said_before_anything_is_written(config, tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--config", config, "--output", str(out), "--no_tsne"]
    text = error_of(capsys, *common, "--ckpt_path", "nowhere.ckpt")
    assert "--ckpt_path: found no file nowhere.ckpt; expected a checkpoint" in text
    assert "--num_images: found 0, expected" in error_of(capsys, *common, "--num_images", "0")
    unlabelled = {"class_path": "tests.fixtures.tiny.TinyDataset", "init_args": {"has_labels": False}}
    changed(config, "val", unlabelled)
    assert "data.val has no labels, which it needs" in error_of(capsys, *common)
    changed(config, "val", None)
    assert "data.val isn't set, but this run needs it" in error_of(capsys, *common)
    assert "required: --output" in error_of(capsys, "--config", config)
    assert not out.exists()


def test_earlier_files_are_kept(config, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/classes.csv").write_text("mine")
    text = error_of(capsys, "--config", config, "--output", str(tmp_path / "out"), "--no_tsne")
    assert "found classes.csv of an earlier analysis" in text
    assert (tmp_path / "out/classes.csv").read_text() == "mine"
    assert f"as {config} is no folder" in error_of(capsys, "--config", config, "--output", config, "--no_tsne")


def test_a_missing_scikit_learn_is_said_at_once(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(feature_figures, "find_spec", lambda name: None)
    text = error_of(capsys, "--config", config, "--output", str(tmp_path / "out"))
    assert 'found no scikit-learn, which makes it. Install it by `pip install "lightning_uda[analysis]"`' in text
    assert not (tmp_path / "out").exists()


def test_tsne_keeps_neighbours_and_is_drawn(config, tmp_path):
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(120, 8, generator=generator) + 30 * (torch.arange(120) % 2).unsqueeze(1)
    places = embed(rows, seed=3)
    assert places.shape == (120, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(120)
    assert (distances.argmin(axis=1) % 2 == np.arange(120) % 2).all()
    main(["analyze", "--config", config, "--output", str(tmp_path / "out")])
    assert min(Image.open(tmp_path / "out/tsne.png").size) > 600


def test_a_domain_can_be_measured_without_progress_and_with_few_pixels(capfd):
    data = UDADataModule("camvid", source=TinyDataset(4), num_workers=0)
    measured = measure(
        tiny_network().eval(), data.labelled_dataloader("source"), "source", 0, pixels_per_class=2, progress=False
    )
    present = measured.pixels > 0
    assert measured.sample[1].bincount(minlength=len(present)).tolist() == (2 * present).tolist()
    assert capfd.readouterr().err == ""


def test_the_similarity_figure_has_a_bar_and_a_number_for_each_class():
    space = get_label_space("camvid")
    values = [0.9, -0.25, np.nan, *[0.5] * 8]
    (axes,) = similarity_figure(values, space, "Title").axes
    assert [round(bar.get_width(), 6) for bar in axes.patches] == [0.9, -0.25, 0, *[0.5] * 8]
    assert [tuple(round(255 * part) for part in bar.get_facecolor()[:3]) for bar in axes.patches] == list(space.palette)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0.900", "-0.250", "absent", *["0.500"] * 8, "mean 0.465"]
    assert axes.get_xlim()[0] < -0.25


def test_the_tsne_figure_has_the_domains_as_markers_and_the_classes_as_colours():
    space = get_label_space("camvid")
    places = np.arange(8, dtype=np.float32).reshape(4, 2)
    points = {"source": (places, torch.tensor([0, 0, 2, 2])), "target": (places[:2] + 1, torch.tensor([2, 5]))}
    figure = tsne_figure(points, space, "Title")
    (axes,), (legend,) = figure.axes, figure.legends
    source, target = axes.collections
    assert np.array_equal(source.get_offsets(), places)
    assert np.array_equal(target.get_offsets(), places[:2] + 1)
    assert not np.array_equal(source.get_paths()[0].vertices, target.get_paths()[0].vertices)
    for drawn, labels in ((source, [0, 0, 2, 2]), (target, [2, 5])):
        assert [tuple(c) for c in (255 * drawn.get_facecolors()[:, :3]).round().astype(int)] == [
            space.palette[label] for label in labels
        ]
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["source", "target", "", *(space.classes[i] for i in (0, 2, 5))]


def test_the_command_line_takes_what_validate_takes(config, tmp_path):
    cli = run_trainer(["validate", "--config", config, "--trainer.accelerator", "cpu"], kind=PartsCLI)
    assert cli.trainer.strategy.root_device == torch.device("cpu")
    assert not (tmp_path / "SourceOnly").exists()


def test_the_command_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_stages(tmp_path, "DACS", stages=("fit",))["fit"]
    (run / "checkpoints/step=4.ckpt").rename(run / "checkpoints/last.ckpt")
    (tmp_path / "runs/minicity").mkdir(parents=True)
    (tmp_path / "runs/minicity/t2sda").symlink_to(run.parent)
    (command,) = re.findall(r"^lightning-uda (analyze .*)$", (ROOT / "docs/analysis.md").read_text(), re.M)
    main([*shlex.split(command), "--no_tsne"])
    assert (tmp_path / "runs/minicity/t2sda/analysis/similarity.png").is_file()
    columns = {name.removesuffix("_source") for name in next(iter(table(run.parent / "analysis").values()))}
    page = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/analysis.md").read_text(), re.M))
    assert {name for name in columns if not name.endswith("_target")} == page
