from pathlib import Path

import pytest
import yaml

from lightning_uda.cli import run_trainer
from lightning_uda.includes import overlay, resolve


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def read(folder, name):
    return resolve({"include": f"{name}.yaml"}, folder, yaml.safe_load)


def test_what_stands_beside_goes_over_what_is_included(tmp_path):
    write(
        tmp_path,
        base={"name": "base", "model": {"class_path": "DSP", "init_args": {"beta": 0.8, "k": 2, "over": [1, 2]}}},
        row={"include": "base.yaml", "name": "row", "model": {"init_args": {"beta": 1.0, "over": [3]}}},
    )
    expected = {"name": "row", "model": {"class_path": "DSP", "init_args": {"beta": 1.0, "k": 2, "over": [3]}}}
    assert read(tmp_path, "row") == expected


def test_a_part_of_another_class_or_null_replaces_the_part(tmp_path):
    part = {"class_path": "A", "init_args": {"x": 1}}
    assert overlay({"part": part}, {"part": {"class_path": "B"}}) == {"part": {"class_path": "B"}}
    assert overlay({"part": part}, {"part": None}) == {"part": None}
    assert overlay({"part": part}, {"part": "other.yaml"}) == {"part": "other.yaml"}
    assert overlay({"part": part}, {"part": {"class_path": "A"}}) == {"part": part}


@pytest.mark.parametrize(
    ("base", "merged"),
    [
        ({"callbacks": ["a", "b"]}, {"callbacks": ["a", "b", "c"]}),
        ({"callbacks": "a"}, {"callbacks": ["a", "c"]}),
        ({"callbacks": None}, {"callbacks": ["c"]}),
        ({"callbacks+": ["a"]}, {"callbacks+": ["a", "c"]}),
        ({}, {"callbacks+": ["c"]}),
    ],
)
def test_a_key_with_a_plus_sign_adds_to_the_list(base, merged):
    assert overlay({"trainer": base}, {"trainer": {"callbacks+": ["c"]}}) == {"trainer": merged}


def test_keys_may_be_numbers():
    assert overlay({"class_map": {7: "road", 8: "car"}}, {"class_map": {8: "bus"}}) == {
        "class_map": {7: "road", 8: "bus"}
    }


def test_the_command_line_adds_to_included_callbacks(tmp_path, capsys):
    row = {"include": "minicity/dacs", "trainer": {"callbacks+": [{"class_path": "AdaptBatchNorm"}]}}
    write(tmp_path, row=row)

    def callbacks(config):
        with pytest.raises(SystemExit):
            run_trainer(["fit", "--config", str(config), "--print_config"])
        found = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"] or []
        return [callback["class_path"].rpartition(".")[2] for callback in found]

    assert callbacks(tmp_path / "row.yaml") == [*callbacks("minicity/dacs"), "AdaptBatchNorm"]


def test_paths_are_relative_to_the_file_they_stand_in(tmp_path):
    (tmp_path / "method").mkdir()
    write(tmp_path, sgd={"lr": 1})
    write(tmp_path / "method", dacs={"optimizer": {"include": "../sgd.yaml"}})
    write(tmp_path, row={"model": {"include": "method/dacs.yaml", "seed": 3}})
    assert read(tmp_path, "row") == {"model": {"optimizer": {"lr": 1}, "seed": 3}}


def test_later_files_of_a_list_go_over_earlier_ones(tmp_path):
    write(tmp_path, a={"x": 1, "y": 1}, b={"x": 2}, row={"include": ["a.yaml", "b.yaml"]})
    assert read(tmp_path, "row") == {"x": 2, "y": 1}


def test_missing_files_and_circles_are_named(tmp_path):
    write(tmp_path, a={"include": "b.yaml"}, b={"include": "a.yaml"}, c={"include": "none.yaml"})
    with pytest.raises(ValueError, match=r"include: a\.yaml: it includes itself"):
        read(tmp_path, "a")
    with pytest.raises(ValueError, match=r"include: none\.yaml: found no such file.*relative to the file"):
        read(tmp_path, "c")


def test_the_command_line_reads_them_and_options_go_on_top(tmp_path, capsys):
    write(
        tmp_path,
        method={"class_path": "SourceOnly", "init_args": {"scoring": {"sizes": [[8, 8]]}}},
        row={
            "data": {"class_path": "UDADataModule", "init_args": {"label_space": "camvid"}},
            "model": {"include": "method.yaml", "init_args": {"network": {"class_path": "DeepLabV2"}}},
        },
    )
    with pytest.raises(SystemExit):
        run_trainer(
            ["fit", "--config", str(tmp_path / "row.yaml"), "--model.network.backbone=resnet18", "--print_config"]
        )
    config = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert config["scoring"]["init_args"]["sizes"] == [[8, 8]]
    assert config["network"]["init_args"]["backbone"] == "resnet18"


def test_items_of_lists_may_be_included_and_paths_must_be_paths(tmp_path):
    write(tmp_path, a={"x": 1}, row={"callbacks": [{"include": "a.yaml"}, 2]}, wrong={"include": {"a": 1}})
    assert read(tmp_path, "row") == {"callbacks": [{"x": 1}, 2]}
    with pytest.raises(ValueError, match=r"include: found \{'a': 1\}.*expected the path of a file"):
        read(tmp_path, "wrong")


def test_a_shipped_experiment_can_be_included_from_anywhere(tmp_path, capsys):
    shipped = Path(__file__).parents[1] / "configs/experiment/minicity/dacs.yaml"
    write(tmp_path, mine={"include": str(shipped), "name": "mine"})
    with pytest.raises(SystemExit) as end:
        run_trainer(["fit", "--config", str(tmp_path / "mine.yaml"), "--print_config"])
    assert not end.value.code
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "mine"
