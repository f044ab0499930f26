"""A row's file gives that row whatever was set before it: it names every part in which rows differ."""

from functools import lru_cache
from itertools import permutations

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_uda.cli import run_trainer
from lightning_uda.methods import UDAModule
from tests.fixtures.configs import CONFIGS, read

AXES = {"model": CONFIGS / "method", "model.rounds": CONFIGS / "rounds"}
"""Options whose files stand for rows, and where the files are."""

SELF_TRAINING = [
    path
    for path in sorted(CONFIGS.glob("experiment/*/*.yaml"))
    if read(path)["model"].get("class_path") == "SelfTraining"
]
OTHER_ROUNDS = {
    "class_path": "SelfTrainingRounds",
    "init_args": {
        "num_rounds": 7,
        "epochs_per_round": 5,
        "portions": {"initial": "0.11", "step": "0.01", "maximum": "0.99"},
        "thresholds": {
            "class_path": "RadixSelect",
            "init_args": {"scope": "global", "min_rank": 1, "threshold_cap": 0.5, "conf_stride": 9},
        },
        "inference": {
            "class_path": "MultiScale",
            "init_args": {
                "base": {"class_path": "SlidingWindow", "init_args": {"crop": [8, 8], "stride": [4, 4]}},
                "scales": [0.3],
                "flip": False,
                "average": "logits",
            },
        },
        "source_images": {"class_path": "SourcePerTarget", "init_args": {"ratio": 9.0, "nested": False}},
        "mining": {
            **{"probability": 0.1, "share": 0.1, "num_rarest": 1},
            **{"fallback": False, "source": True, "centres": "inside"},
        },
        "spatial_prior": {"size": [9, 9], "radius": 1, "sigma": 0.1, "over": "classes"},
        "target_subset": 5,
        "lr_round_factor": 0.1,
        "stored_bits": 16,
    },
}
"""Every part set to something that no row has."""

OTHER_ROW = {
    "class_path": "SelfTraining",
    "init_args": {
        "rounds": OTHER_ROUNDS,
        "loss": {"class_path": "HardLabels", "init_args": {"strict": True}},
        "inference": {"class_path": "MultiScale", "init_args": {"scales": [0.1]}},
    },
}


@lru_cache(maxsize=1)
def parser():
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(UDAModule, "model")
    return made


@lru_cache(maxsize=64)
def model_of(*options):
    """What options of the method come to, merged in their order as the command line merges them."""
    fixed = ["--model.network", "tests.fixtures.tiny.TinyNetwork", "--model.label_space", "camvid"]
    found = parser().parse_args([*(str(option) for option in options), *fixed], with_meta=False).as_dict()["model"]
    arguments = {name: value for name, value in found["init_args"].items() if name != "init_from"}
    return {"class_path": found["class_path"], **arguments}


def pairs():
    """Every file over every other of its folder; but for the first over the last and back left to the slow tests."""
    for option, folder in AXES.items():
        files = sorted(folder.glob("*.yaml"))
        ends = {files[0], files[-1]}
        for first, second in permutations(files, 2):
            marks = [] if {first, second} == ends else [pytest.mark.slow]
            yield pytest.param(option, first, second, id=f"{second.stem}-over-{first.stem}", marks=marks)


def names_in(content, place=""):
    """All names and classes of a config, each with where it stands."""
    if not isinstance(content, dict):
        return set()
    here = {f"{place}.{name}={content[name] if name == 'class_path' else ''}" for name in content}
    return here.union(*(names_in(value, f"{place}.{name}") for name, value in content.items()))


def self_training_rows():
    """Experiments of self-training, each the first of those that name the same but for their network."""
    seen = set()
    for path in SELF_TRAINING:
        model = read(path)["model"]
        del model["init_args"]["network"]
        named = frozenset(names_in(model))
        marks = [pytest.mark.slow] if named in seen else []
        yield pytest.param(path, id=f"{path.parent.name}-{path.stem}", marks=marks)
        seen.add(named)


@pytest.mark.parametrize(("option", "first", "second"), pairs())
def test_a_rows_file_over_anothers_gives_its_row(option, first, second):
    start = ["--model", "SelfTraining"] if option == "model.rounds" else []
    merged = model_of(*start, f"--{option}", first, f"--{option}", second)
    assert merged == model_of(*start, f"--{option}", second)
    assert merged != model_of(*start, f"--{option}", first)


@pytest.mark.parametrize("path", sorted((CONFIGS / "rounds").glob("*.yaml")), ids=lambda path: path.stem)
def test_rounds_name_every_part(path, tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(OTHER_ROW))
    alone = model_of("--model", "SelfTraining", "--model.rounds", path)["rounds"]
    assert model_of("--model", tmp_path / "other.yaml", "--model.rounds", path)["rounds"] == alone
    named = yaml.safe_load(path.read_text())["init_args"]
    assert {*OTHER_ROUNDS["init_args"]} == {*named} == {*alone["init_args"]} - {"accuracy"}


@pytest.mark.parametrize("path", self_training_rows())
def test_a_self_training_experiment_names_every_part(path, tmp_path, monkeypatch):
    """Its rounds, loss and test-time inference; the network is another axis."""
    model = read(path)["model"]
    del model["init_args"]["network"]
    model["init_args"]["optimizer"] = "torch.optim.SGD"
    (tmp_path / "row.yaml").write_text(yaml.safe_dump(model))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(OTHER_ROW))
    row = ["--model", tmp_path / "row.yaml"]
    assert model_of("--model", tmp_path / "other.yaml", *row) == model_of(*row)


@pytest.mark.parametrize("pair", ["gta5_to_cityscapes", "synthia_to_cityscapes"])
def test_the_reference_preset_of_dacs_differs_in_its_optimiser_alone(pair):
    clean, reference = (read(CONFIGS / f"experiment/{pair}/{name}.yaml") for name in ("dacs", "dacs_reference"))
    for config in (clean, reference):
        del config["name"]
    assert reference["model"]["init_args"].pop("optimizer")["class_path"] == "RepeatedSGD"
    assert clean["model"]["init_args"].pop("optimizer")["class_path"] == "torch.optim.SGD"
    assert clean == reference


def test_experiments_after_others_leave_nothing_of_them(capsys):
    """Terms, samplings and scoring of an earlier file would shine through."""

    def config_of(*names):
        files = [["--config", str(CONFIGS / f"experiment/minicity/{name}.yaml")] for name in names]
        with pytest.raises(SystemExit):
            run_trainer(["fit", *(word for file in files for word in file), "--print_config"])
        return capsys.readouterr().out

    assert config_of("dacs_rare_class", "dacs_feature", "dacs") == config_of("dacs")
