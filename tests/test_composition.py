"""Parts of different papers compose by config alone: in options, saved configs, sweeps and the report."""

import shlex
from pathlib import Path

import pytest
import yaml

from lightning_uda.cli import run_trainer
from lightning_uda.commands.sweep import read_sweep
from lightning_uda.methods import (
    DACS,
    DSP,
    EHTDI,
    T2SDA,
    AdaBN,
    DAFormer,
    MeanTeacher,
    NaiveClassMix,
    SelfTraining,
    SourceOnly,
    T2SDAGeneralization,
)
from lightning_uda.report import report
from tests.fixtures.choices import few_of

ROOT = Path(__file__).parents[1]
FEW = (
    "--trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.log_every_n_steps 1 --trainer.callbacks ImagePanels"
)
SMALL = "--data.num_workers 0 --data.batch_size 2 --data.val.length 2 --data.val.size [32,64]"
SMALL += " --data.source.length 4 --data.target.length 4 --data.source.size [32,64] --data.target.size [32,64]"


def fit(folder, config, options):
    config = ROOT / f"configs/experiment/minicity/{config}.yaml"
    run_trainer(shlex.split(f"fit --config {config} --output {folder} --name run {FEW} {SMALL} {options}"))
    return folder / "run/version_0"


@pytest.mark.parametrize(
    ("config", "options", "losses"),
    [
        pytest.param(
            "dacs",
            '--model.terms.feature FeatureMMD --model.terms.feature.between "[source,mixed]"',
            ["feature", "mixed", "source"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "dacs_feature", "--model.terms.feature.weight 0.1", ["feature", "mixed", "source"], marks=pytest.mark.slow
        ),
        (
            "dsp",
            "--model.terms.htcm ConfidentPaste --model.terms.htcm.of target_mixed --model.terms.htcm.tau 0.05",
            ["feature", "htcm", "source", "source_mixed", "target_mixed"],
        ),
        pytest.param("dacs_htcm", "", ["htcm", "mixed", "source"], marks=pytest.mark.slow),
        ("dacs", "--model.terms.mic MaskedConsistency --model.terms.mic.patch 16", ["mic", "mixed", "source"]),
        pytest.param("dacs", "--model.terms.picl PixelContrast", ["mixed", "picl", "source"], marks=pytest.mark.slow),
        ("dacs", "--model.terms.fda Translated", ["fda", "mixed", "source"]),
        pytest.param("dacs_pull", "", ["mixed", "pull", "source"], marks=pytest.mark.slow),
        ("dsp_procl", "", ["feature", "procl", "source", "source_mixed", "target_mixed"]),
    ],
)
def test_terms_of_other_papers_train_and_show_everywhere(tmp_path, capsys, config, options, losses):
    run = fit(tmp_path, config, options)
    terms = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["terms"]
    (term,) = terms.values()
    assert set(term["init_args"]) >= {"weight"}  # in full, defaults too
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    assert [name for name in header.split(",") if "loss" in name] == [
        "train/loss",
        *(f"train/loss_{name}" for name in losses),
    ]
    row = dict(zip(header.split(","), lines[0].split(","), strict=True))
    total = sum(float(row[f"train/loss_{name}"]) for name in losses)
    assert float(row["train/loss"]) == pytest.approx(total, rel=1e-5)
    capsys.readouterr()
    report([run], tmp_path / "report.html")
    out = capsys.readouterr().out
    assert all(name.replace("_", " ") in out for name in losses)


def test_the_saved_config_replays_a_run_with_terms(tmp_path):
    first = fit(tmp_path / "a", "dacs_feature", "")
    run_trainer(["fit", "--config", str(first / "config.yaml"), "--output", str(tmp_path / "b")])
    assert (tmp_path / "b/run/version_0/metrics.csv").read_text() == (first / "metrics.csv").read_text()


def test_terms_can_be_swept(tmp_path, capsys):
    sweep = {
        "method": "grid",
        "program": "lightning-uda",
        "parameters": {"model.init_args.terms.feature.init_args.weight": {"values": [0.0, 0.5]}},
        "command": [
            *("lightning-uda", "fit", f"--config={ROOT}/configs/experiment/minicity/dacs_feature.yaml", "${args}"),
        ],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    points = read_sweep(tmp_path / "sweep.yaml").points
    assert [point.name for point in points] == ["weight=0.0", "weight=0.5"]
    with pytest.raises(SystemExit):
        run_trainer([*points[1].arguments, "--print_config"])
    terms = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["terms"]
    assert terms["feature"]["init_args"] == {"between": ["source", "mixed"], "weight": 0.5, "channels": 256, "seed": 0}


COMMON = ["network", "label_space", "optimizer", "schedule", "inference", "seed", "scoring", "terms", "init_from"]


METHODS = [SourceOnly, AdaBN, MeanTeacher, NaiveClassMix, DACS, DAFormer, DSP, EHTDI]
METHODS += [T2SDA, T2SDAGeneralization, SelfTraining]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_shows_the_arguments_of_the_base(method, capsys):
    with pytest.raises(SystemExit):
        run_trainer(["fit", "--model.help", method.__name__])
    out = capsys.readouterr().out
    assert [name for name in COMMON if f"--model.{name} " not in out] == []
    assert "Further terms of the loss by name" in " ".join(out.split())


@pytest.mark.parametrize("method", few_of(METHODS, T2SDA, SelfTraining))
def test_the_defaults_of_every_method_can_be_written_and_read_back(method, tmp_path, capsys):
    """A default made with positional arguments or of other objects is no text: the run's config.yaml would be lost."""
    network = "--model.network EncoderDecoder --model.network.backbone CaffeResNet --model.network.head ASPP"
    options = f"fit --model {method.__name__} {network} --model.label_space camvid --model.network.num_classes 11"
    with pytest.raises(SystemExit):
        run_trainer([*options.split(), "--print_config"])
    written = capsys.readouterr().out
    assert "Unable to serialize" not in written
    (tmp_path / "config.yaml").write_text(written)
    with pytest.raises(SystemExit):
        run_trainer(["fit", "--config", str(tmp_path / "config.yaml"), "--print_config"])
    assert capsys.readouterr().out == written
