"""The documentation's commands run, and the files it names exist."""

import csv
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_uda.__main__ import main
from lightning_uda.commands.grid_file import read_grid
from lightning_uda.commands.runner import Point, Runner
from tests.fixtures import official_layouts
from tests.fixtures.choices import few_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHECKS = {
    page.stem: line
    for page in sorted((ROOT / "docs/datasets").glob("*.md"))
    for line in page.read_text().splitlines()
    if line.startswith("lightning-uda data check")
}
MAKERS = {name.removeprefix("make_"): make for name, make in vars(official_layouts).items() if name.startswith("make_")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configs_and_scripts_named_exist(page):
    named = re.findall(r"\b(?:configs|benchmarks|docs|lightning_uda)/[\w/.-]+\.(?:yaml|py|md)\b", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_dataset_page_says_how_to_check_the_data():
    assert set(CHECKS) == {"camvid", *MAKERS}


@pytest.mark.parametrize("dataset", sorted(set(CHECKS) - {"camvid"}))
def test_data_check_of_a_dataset_page_runs(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in {"gta5", "synthia", "cityscapes", "bdd100k"} & set(re.findall(r"data/(\w+)", CHECKS[dataset])) | {
        dataset
    }:
        MAKERS[name](tmp_path / "data" / name)
    with pytest.raises(SystemExit) as end:
        main(shlex.split(CHECKS[dataset])[1:])
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    for name in ("source", "target", "val"):
        assert f"{name} ───" in out


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", *(str(page.relative_to(ROOT)) for page in PAGES[1:])])
def test_make_targets_named_exist(page):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        set(re.findall(r"(?:`|^)(?:\w+=\S+ )*make (?:-j\d )?([a-z0-9-]+)", (ROOT / page).read_text(), re.M)) <= targets
    )


@pytest.mark.parametrize("page", sorted((ROOT / "docs/methods").glob("*.md")), ids=lambda page: page.stem)
def test_commands_of_a_method_page_parse(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"`lightning-uda (fit [^`]*)`", page.read_text())
    assert commands
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main([*shlex.split(command), *([] if ".help" in command else ["--print_config"])])
        assert end.value.code == 0, capsys.readouterr().err


def test_commands_of_other_pages_parse(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    pages = [page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))]
    commands = [line for page in pages for line in re.findall(r"^lightning-uda (fit .*)$", page, re.MULTILINE)]
    assert len(commands) > 4
    for command in commands:
        words = command.replace(" --resume", "").replace("classes.yaml", "cityscapes")  # that file is the reader's
        with pytest.raises(SystemExit) as end:
            main([*shlex.split(words), "--print_config"])
        assert end.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "config"), few_of([("dacs", "dacs"), ("dsp", "dsp"), ("self_training", "cbst")], ("self_training", "cbst"))
)
def test_options_of_a_method_page_parse(page, config, capsys):
    config = str(ROOT / f"configs/experiment/gta5_to_cityscapes/{config}.yaml")
    options = re.findall(r"`(--(?:model|data)\.[^`]*? [^`]*)`", (ROOT / f"docs/methods/{page}.md").read_text())
    assert options
    for option in options:
        if "alignment" not in option:  # of another row
            with pytest.raises(SystemExit) as end:
                main(["fit", "--config", config, *shlex.split(option), "--print_config"])
            assert end.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(("first", "second", "unit"), [("dacs", "dsp", "radians"), ("dsp", "dacs", "turns")])
def test_hue_is_that_of_the_method_whatever_config_came_before(first, second, unit, capsys):
    configs = [["--config", str(ROOT / f"configs/experiment/minicity/{first}.yaml")]]
    configs.append(["--model", str(ROOT / f"configs/method/{second}.yaml")])
    with pytest.raises(SystemExit):
        main(["fit", *configs[0], *configs[1], "--print_config"])
    assert f"hue_unit: {unit}" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "loss"), [("my_methods", "loss entropy"), ("my_terms", "loss entropy")])
def test_the_own_method_and_term_of_the_page_train(module, loss, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/extending.md").read_text()
    codes = dict(re.findall(r"file\s+`(my_\w+)\.py`:\n\n```python\n(.*?)```", page, re.S))
    assert len(codes[module].strip().splitlines()) < 25
    (tmp_path / f"{module}.py").write_text(codes[module])
    (command,) = re.findall(rf"^PYTHONPATH=\. lightning-uda (.*{module}.*)$", page, re.M)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    few = "--trainer.max_steps 1 --trainer.val_check_interval 1 --trainer.log_every_n_steps 1 --data.val.length 2"
    main(shlex.split(f"{command} {few} --data.num_workers 0 --data.source.length 4 --data.target.length 4 --name own"))
    assert loss in capsys.readouterr().out
    run = tmp_path / "runs/own/version_0"
    assert "weight: 0.01" in (run / "config.yaml").read_text()
    assert "weights: random at the start" in (run / "notes.txt").read_text()


def script_of(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_results_page_is_that_of_its_files_and_its_experiments_are_there(tmp_path, monkeypatch):
    script = script_of("make_results")
    assert script.page() == (ROOT / "docs/results.md").read_text(encoding="utf-8")
    rows = list(csv.DictReader((ROOT / "docs/figures/published.csv").open(newline="")))
    experiments = {ROOT / "configs/experiment" / row["pair"] / f"{row['config']}.yaml" for row in rows}
    assert [path for path in experiments if not path.is_file()] == []

    figures = (
        "row,seed,miou,best_miou\ndacs,0,50.0,\ndacs,1,53.0,54.0\ndsp_beta_0.5,0,49.0,55.0\ndacs_reference,0,52.5,\n"
    )
    (tmp_path / "published.csv").write_text((ROOT / "docs/figures/published.csv").read_text())
    (tmp_path / "gta5_to_cityscapes.csv").write_text(figures)
    monkeypatch.setattr(script, "FIGURES", tmp_path)
    page = script.page()
    assert "| DACS | `dacs` | 52.14 | 51.5 (2), best 54.0 (1), reference 52.5 (1) |" in page
    assert "| beta 0.5 | `dsp` `--model.beta 0.5` | 51.0 | 55.0 (1), last 49.0 (1) |" in page


def test_published_rows_are_a_grid(tmp_path):
    script = script_of("make_results")
    rows = [row for row in script.published() if row["pair"] == "synthia_to_cityscapes"]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(script.grid_of("synthia_to_cityscapes"), sort_keys=False))
    grid = read_grid(tmp_path / "grid.yaml")
    ways = {(row["pair"], script.name_of(row), row["config"], row["options"]) for row in script.published()}
    assert len({way[:2] for way in ways}) == len(ways), "two rows have one name"
    references = {
        (row["pair"], script.name_of(row), row["reference"]) for row in script.published() if row["reference"]
    }
    assert len({way[:2] for way in references}) == len(references), "two reference presets have one name"
    names = {script.name_of(row) for row in rows}
    assert {*names, *(script.name_of(row, True) for row in rows if row["reference"]), "cbst_source_only"} == {
        *grid.rows
    }
    assert grid.rows["fcn8s_cbst_scope_global"].points[0].arguments == [
        *["fit", "--config=synthia_to_cityscapes/fcn8s_cbst", "--seed_everything=0"],
        *["--model.rounds.thresholds.scope", "global"],
        "--model.init_from={run:published_synthia_to_cityscapes/seed_0/fcn8s_source_only}",
    ]


@pytest.mark.slow
def test_options_of_the_results_page_are_accepted(monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = csv.DictReader((ROOT / "docs/figures/published.csv").open(newline=""))
    ways = {re.sub(r" [\d.]+", "", f"{row['options']} {row['reference']}"): row for row in rows}
    points = [
        Point(
            row["row"],
            row["row"],
            {},
            ["fit", "--config", f"{row['pair']}/{row['config']}", *shlex.split(f"{row['options']} {row['reference']}")],
        )
        for row in ways.values()
    ]
    Runner("results", points, Path("nowhere")).check(points)
    assert len(points) > 40


def test_the_benchmarks_page_has_the_tables_of_the_committed_figures():
    script = script_of("make_benchmarks")
    page = script.PAGE.read_text(encoding="utf-8")
    assert page.count("| DACS |") >= 4
    assert script.filled(page) == page


def test_scores_in_sentences_are_those_of_the_committed_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    script = script_of("make_benchmarks")
    pages = [*script.METHOD_PAGES, script_of("make_leaderboard").PAGE]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert page not in script.METHOD_PAGES or script.filled(text) == text, page
        sentences = script.BLOCK.sub("", script.SCORE.sub("", text))
        assert not re.search(r"\d ± \d", sentences), f"{page}: a score that no command writes"
    old = "DSP <!-- score minicity dsp -->0.0 ± 9.9<!-- end -->, <!-- score minicity dsp - dacs miou -->+1<!-- end -->"
    assert re.fullmatch(r"DSP <!.*-->\d\d\.\d ± \d\.\d<!-- end -->, <!.*-->\+\d\.\d<!-- end -->", script.filled(old))
    with pytest.raises(KeyError, match="dspp"):
        script.filled(old.replace("dsp ", "dspp "))


def test_the_leaderboard_has_the_tables_of_the_committed_figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    script = script_of("make_leaderboard")
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.filled(page) == page
    assert script.PICTURE.is_file()
    assert page.count("| DACS → DSP | fp32 |") == 3
    assert page.count("<!-- table ") == len(script.BENCHMARKS)


@pytest.mark.parametrize("options", ["", "OPTIONS=--trainer.max_steps 7"])
def test_make_leaderboard_trains_its_grids_and_writes_the_page_of_runs_without_options(options):
    make = ["make", "-n", "-o", ".venv/.ready", "leaderboard", "SEEDS=4", *filter(None, [options])]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    result = subprocess.run(make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    trained = [line.split()[2] for line in lines if line.startswith(".venv/bin/lightning-uda grid ")]
    assert trained == [f"configs/grids/{name}.yaml" for name in ("minicity", "minicity_mit", "dusk", "dusk_scratch")]
    assert (lines[-1] == ".venv/bin/python docs/make_leaderboard.py") is (not options)


def test_the_leaderboard_names_what_is_missing_and_ranks_what_compares(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    script = script_of("make_leaderboard")
    grid = read_grid(ROOT / "configs/grids/minicity.yaml")
    rows = {row: {} for row in grid.rows}
    scores = {"source_only": (30, 32), "dacs": (36, 36), "dacs_borders": (35, 36), "oracle": (50, 52), "ada_bn": (29,)}
    for row, values in scores.items():
        rows[row] = {(("seed", seed),): {"miou": value, "minutes": 2} for seed, value in enumerate(values)}
    entries = {row: script.entry_of(grid, row) for row in grid.rows}
    order = script.ranked(rows)
    assert order == ["oracle", "dacs", "dacs_borders", "source_only", "ada_bn"]
    lines = script.ranking(rows, entries, order, {row: {"CPU"} for row in order})
    assert lines[2].startswith("|  | oracle (target labels) | fp32 | 51.0 ± 1.4 | +20.0 ± 0.0 | 100 ± 0 |")
    assert lines[3] == "| 1 | DACS | fp32 | 36.0 ± 0.0 | +5.0 ± 1.4 | 25 ± 7 | 2 | 2.0 | CPU | **2 seeds only** |"
    assert (
        lines[6]
        == "|  | AdaBN | fp32 | 29.0 | -1.0 | -5 | 1 | 2.0 | CPU | a trained run, evaluated anew; **1 of 2 runs** |"
    )
    assert lines[-2] == "DACS closes 25 % of the gap, by its mean the most."
    assert lines[-1].startswith("Not trained yet: mean teacher; naive ClassMix; ")
    (said,) = script.precisions(grid, rows, entries)
    assert said.endswith("bf16 less fp32 is: DACS -0.5 ± 0.7 (2 pairs).")
    steps = script.orders(rows, entries)
    assert "| DACS < + pull | DACS, borders scored → DACS + pull | bf16 | | 0 | not trained |" in steps

    rows["dacs"] = {run: {"miou": 60} for run in rows["dacs"]}
    shares, said = script.gap_shares(rows, entries, script.ranked(rows))
    assert (shares, said) == ({}, "No share of a gap is given: DACS stands above the oracle in 2 of 2 runs.")

    rows["oracle_both"] = {(("seed", 1),): {"miou": 64, "minutes": 2}}
    entries["oracle_both"] = entries["oracle"]
    shares, said = script.gap_shares(rows, entries, script.ranked(rows))
    assert shares["dacs"].mean == pytest.approx(100 * (60 - 32) / (64 - 32))
    assert said == "DACS closes 88 % of the gap, over 1 of 2 runs, by its mean the most."


def test_the_site_is_built_without_a_warning_and_has_every_public_class(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in PAGES[1:]} - {"index"}
    assert [page for page in pages if not (tmp_path / page / "index.html").is_file()] == []
    reference = (tmp_path / "reference/index.html").read_text()
    rooms = ("methods", "terms", "networks", "datasets", "mixing", "translation", "inference", "optim", "callbacks")
    classes = [value for room in rooms for value in vars(importlib.import_module(f"lightning_uda.{room}")).values()]
    public = {
        each.__name__ for each in classes if isinstance(each, type) and each.__module__.startswith("lightning_uda.")
    }
    assert len(public) > 100
    assert sorted(name for name in public if not re.search(rf'id="lightning_uda\.\w+\.{name}"', reference)) == []


def test_a_broken_link_fails_the_site(tmp_path):
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("[gone](gone.md)")
    content = {"site_name": "x", "strict": True, "validation": config["validation"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "mkdocs", "build"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
