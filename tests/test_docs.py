"""The documentation's commands run, and the files it names exist."""

import re
import shlex
from pathlib import Path

import pytest

from lightning_uda.cli import main
from tests.fixtures.official_layouts import make_bdd100k, make_cityscapes, make_gta5, make_nthu, make_synthia

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHECKS = {
    page.stem: line
    for page in sorted((ROOT / "docs/datasets").glob("*.md"))
    for line in page.read_text().splitlines()
    if line.startswith("lightning-uda data check")
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configs_and_scripts_named_exist(page):
    named = re.findall(r"\b(?:configs|benchmarks|docs|lightning_uda)/[\w/.-]+\.(?:yaml|py|md)\b", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_dataset_page_says_how_to_check_the_data():
    assert set(CHECKS) == {"bdd100k", "camvid", "cityscapes", "gta5", "nthu", "synthia"}


@pytest.mark.parametrize("dataset", sorted(set(CHECKS) - {"camvid"}))
def test_data_check_of_a_dataset_page_runs(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for make in (make_gta5, make_synthia, make_cityscapes, make_bdd100k, make_nthu):
        make(tmp_path / "data" / make.__name__.removeprefix("make_"))
    with pytest.raises(SystemExit) as end:
        main(shlex.split(CHECKS[dataset])[1:])
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    for name in ("source", "target", "val"):
        assert f"{name} ───" in out
