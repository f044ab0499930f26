from pathlib import Path

import pytest
import yaml

from lightning_uda.config_files import find_config, read_config, shipped, shipped_configs, short_names, with_paths
from lightning_uda.includes import resolve

ROOT = Path(__file__).parents[1]


def test_the_configs_of_a_checkout_are_at_its_top():
    assert shipped_configs() == ROOT / "configs"


def test_short_names_are_distinct_and_leave_out_what_goes_without_saying():
    names = short_names()
    assert len(names) == len(list((ROOT / "configs").rglob("*.yaml")))
    assert names["minicity/dacs"] == ROOT / "configs/experiment/minicity/dacs.yaml"
    assert names["network/hrda_mit_b0"] == ROOT / "configs/network/hrda_mit_b0.yaml"
    assert names["grids/minicity"] == ROOT / "configs/grids/minicity.yaml"


@pytest.mark.parametrize(
    ("name", "folder", "path"),
    [
        ("minicity/dacs", "", "experiment/minicity/dacs.yaml"),
        ("minicity/dacs.yaml", "", "experiment/minicity/dacs.yaml"),
        ("configs/experiment/minicity/dacs.yaml", "", "experiment/minicity/dacs.yaml"),
        ("minicity", "grids", "grids/minicity.yaml"),
        ("configs/grids/minicity.yaml", "grids", "grids/minicity.yaml"),
        ("data/minicity", "", "data/minicity.yaml"),
    ],
)
def test_a_name_is_found_from_any_folder(name, folder, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name, folder) == ROOT / "configs" / path


def test_an_existing_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minicity").mkdir()
    (tmp_path / "minicity/dacs").write_text("name: own")
    assert find_config("minicity/dacs") == Path("minicity/dacs")
    assert shipped("minicity/none") is None


@pytest.mark.parametrize(
    ("name", "folder", "nearest"),
    [
        ("minicity/dacss", "", "The nearest are minicity/dacs, "),
        ("dcas", "", "`lightning-uda configs` lists"),
        ("dacs", "", "/dacs"),
        ("minicty", "grids", "The nearest are minicity, minicity_mit."),
    ],
)
def test_a_misspelt_name_gets_the_nearest(name, folder, nearest):
    with pytest.raises(FileNotFoundError, match=f"found no file {name}, and no shipped config") as error:
        find_config(name, folder)
    assert nearest in str(error.value)


def test_options_that_take_a_config_take_names_and_others_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config=minicity/dacs", "-c", "demo/dacs", "--data", "minicity", "--model", "DACS"]
    words += ["--model.network", "network/hrda_mit_b0", "--name", "minicity/dacs", "--config", "{name: x}"]
    configs = ROOT / "configs"
    assert with_paths(words) == [
        *["fit", f"--config={configs / 'experiment/minicity/dacs.yaml'}", "-c", f"{configs / 'demo/dacs.yaml'}"],
        *["--data", f"{configs / 'data/minicity.yaml'}", "--model", "DACS"],
        *["--model.network", f"{configs / 'network/hrda_mit_b0.yaml'}"],
        *["--name", "minicity/dacs", "--config", "{name: x}"],
    ]
    with pytest.raises(FileNotFoundError, match=r"--model: found no file configs/method/dacss\.yaml"):
        with_paths(["--model", "configs/method/dacss.yaml"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: {a", "own.yaml: can't be read as YAML at line 1, column 10"),
        (b"- 3", r"own.yaml: found \[3\]; expected a mapping of options"),
        (b"name: \xff\xfe", "own.yaml: found bytes that aren't text in UTF-8"),
        (b"", "own.yaml: found None; expected a mapping of options"),
    ],
)
def test_a_file_that_holds_no_options_is_named(content, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        with_paths(["fit", "--config", str(path)])


def test_an_own_file_includes_a_shipped_config_by_name(tmp_path):
    found = resolve({"include": "minicity/dacs", "name": "mine"}, tmp_path, yaml.safe_load)
    assert (found["name"], found["model"]["class_path"]) == ("mine", "DACS")
    assert "'include'" not in str(found)


def test_a_damaged_included_file_is_named(tmp_path):
    (tmp_path / "part.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"part\.yaml: can't be read as YAML"):
        resolve({"include": "part.yaml"}, tmp_path, yaml.safe_load)


def test_every_shipped_config_begins_with_what_it_is():
    silent = [name for name, path in short_names().items() if not path.read_text(encoding="utf-8").startswith("# ")]
    assert silent == []
    assert all(isinstance(read_config(path), dict) for path in short_names().values())
