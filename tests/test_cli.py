import functools
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from lightning_uda.__main__ import COMMANDS, TRAINER, main
from lightning_uda.cli import UDACLI, load_value, run_trainer
from lightning_uda.methods import SourceOnly
from tests.fixtures.choices import few_of
from tests.fixtures.stages import write_config
from tests.fixtures.tiny import TinyDataset, TinyNetwork

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A two-step DACS run on tiny data, as a config file; the test works in its folder."""
    monkeypatch.chdir(tmp_path)
    dataset = {"class_path": "tests.fixtures.tiny.TinyDataset"}
    content = {
        "name": "tiny",
        "seed_everything": 4,
        "data": {
            "class_path": "UDADataModule",
            "init_args": {
                "label_space": "camvid",
                "source": dataset,
                "target": dataset,
                "val": dataset,
                "num_workers": 0,
            },
        },
        "model": {
            "class_path": "DACS",
            "init_args": {"network": {"class_path": "tests.fixtures.tiny.TinyNetwork"}},
        },
        "trainer": {
            "max_steps": 2,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    return str(error.value.code) + capsys.readouterr().err


def weights(folder):
    (checkpoint,) = Path(folder).glob("checkpoints/*.ckpt")
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_a_run_keeps_config_metrics_and_checkpoint_and_can_be_replayed(config, tmp_path):
    main(["fit", "--config", config])
    first = tmp_path / "runs/tiny/version_0"
    assert {"config.yaml", "metrics.csv", "iou.csv", "confusions", "checkpoints"} <= {
        path.name for path in first.iterdir()
    }
    before = (first / "metrics.csv").read_text()

    main(["fit", "--config", str(first / "config.yaml")])
    second = tmp_path / "runs/tiny/version_1"
    assert all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())
    assert (first / "metrics.csv").read_text() == before


def test_classes_label_space_and_seed_are_said_once(config):
    cli = run_trainer(["fit", "--config", config])
    assert cli.model.label_space == cli.datamodule.label_space
    assert cli.model.student.num_classes == 11
    assert cli.model.seed == cli.datamodule.seed == 4


def test_validate_and_test_score_a_checkpoint(config, tmp_path, capsys):
    main(["fit", "--config", config])
    (checkpoint,) = tmp_path.glob("runs/tiny/version_0/checkpoints/*.ckpt")
    for command in ("validate", "test"):
        main([command, "--config", config, "--ckpt_path", str(checkpoint)])
        assert " at step 2" in capsys.readouterr().out


def test_predict_writes_labels_and_colours(config, tmp_path):
    images = tmp_path / "photos"
    images.mkdir()
    for name, size in (("a", (20, 36)), ("b", (28, 24))):
        cv2.imwrite(str(images / f"{name}.png"), np.full((*size, 3), 90, np.uint8))
    main(["fit", "--config", config])
    (checkpoint,) = tmp_path.glob("runs/tiny/version_0/checkpoints/*.ckpt")
    arguments = ["predict", "--config", config, "--ckpt_path", str(checkpoint), "--data.predict", "ImageFolder"]
    arguments += ["--data.predict.root", str(images)]
    arguments += ["--trainer.callbacks", "PredictionWriter", "--trainer.callbacks.output_dir", "out"]
    main(arguments)
    assert cv2.imread(str(tmp_path / "out/id/a.png"), cv2.IMREAD_UNCHANGED).shape == (20, 36)
    assert cv2.imread(str(tmp_path / "out/color/b.png")).shape == (28, 24, 3)


def test_predictions_go_to_the_run_folder_by_default_and_untrained_networks_are_warned_of(config, tmp_path, caplog):
    main(["predict", "--config", config, "--data.predict", "tests.fixtures.tiny.TinyDataset"])
    assert len(list((tmp_path / "runs/tiny/version_0/predictions/id").glob("*.png"))) == 10
    assert "no --ckpt_path: the network is run as it was made" in caplog.text


def test_an_error_in_a_worker_is_one_message_too(config, capsys, tmp_path):
    for i, size in enumerate(((8, 8), (8, 12), (16, 8))):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.zeros((*size, 3), np.uint8))
    target = ["--data.target", "ImageFolder", "--data.target.root", str(tmp_path / "images")]
    text = error_of(capsys, "fit", "--config", config, *target, "--data.num_workers", "1", "--data.check", "false")
    assert text.startswith("error: The images of one target batch differ in size")
    assert "Traceback" not in text.split("\n(")[0]


def test_a_sampling_is_named_on_the_command_line_and_saved(config, tmp_path):
    rare = ["--data.source_sampling", "RareClass", "--data.source_sampling.temperature", "0.05"]
    cli = run_trainer(["fit", "--config", config, *rare, "--data.source_sampling.min_pixels", "60"])
    assert cli.trainer.global_step == 2
    saved = yaml.safe_load((tmp_path / "runs/tiny/version_0/config.yaml").read_text())["data"]["init_args"]
    assert saved["source_sampling"]["class_path"] == "lightning_uda.data.sampling.RareClass"
    found = saved["source_sampling"]["init_args"]
    assert found == {"temperature": 0.05, "min_pixels": 60, "min_crop_ratio": 0.5, "max_tries": 11, "max_share": 0.75}
    assert saved["target_sampling"]["class_path"] == "lightning_uda.data.sampling.Shuffled"
    stream = cli.datamodule._stream("source")
    assert (type(stream).__name__, stream.min_pixels) == ("RareClassStream", 30)
    again = run_trainer(["fit", "--config", str(tmp_path / "runs/tiny/version_0/config.yaml")])
    first, second = (
        weights(tmp_path / f"runs/tiny/version_{number}") for number in (0, again.trainer.loggers[0].version)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_loggers_come_on_top_of_the_csv_files(config, tmp_path):
    main(["fit", "--config", config, "--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "tb"])
    assert (tmp_path / "runs/tiny/version_0/metrics.csv").exists()
    assert list((tmp_path / "tb").rglob("events*"))


def test_tensorboard_needs_no_folder_and_writes_into_the_run_folder(config, tmp_path):
    main(["fit", "--config", config, "--trainer.logger", "TensorBoardLogger"])
    (events,) = tmp_path.rglob("events*")
    assert events.parent == tmp_path / "runs/tiny/version_0"
    saved = yaml.safe_load((tmp_path / "runs/tiny/version_0/config.yaml").read_text())
    assert saved["trainer"]["logger"]["init_args"]["save_dir"] == "runs"


@pytest.mark.usefixtures("wandb_anew")
def test_wandb_is_named_as_the_run_folder_and_gets_config_masks_and_matrix(config, tmp_path):
    arguments = ["--trainer.logger", "WandbLogger", "--trainer.callbacks", "ImagePanels"]
    cli = run_trainer(["fit", "--config", config, *arguments, "--trainer.callbacks.num_images", "1"])
    experiment = cli.trainer.loggers[1].experiment
    assert (experiment.name, experiment.project) == ("tiny/version_0", "lightning_uda")
    assert experiment.config["model"]["init_args"]["pixel_weighting"]["init_args"]["threshold"] == 0.968
    experiment.finish()
    (media,) = tmp_path.glob("runs/tiny/wandb/offline-run-*/files/media")
    masks = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in media.rglob("*.mask.png")]
    assert len(masks) == 2
    assert all(mask.shape == (24, 32) for mask in masks)
    (matrix,) = media.rglob("confusion_matrix*.table.json")
    table = json.loads(matrix.read_text())
    assert table["columns"] == ["Actual", "Predicted", "nPredictions"]
    written = (tmp_path / "runs/tiny/version_0/confusions/val_step_000002.csv").read_text().splitlines()
    counts = sum(int(float(count)) for line in written[1:] for count in line.split(",")[1:])
    assert (len(table["data"]), sum(row[2] for row in table["data"])) == (11**2, counts)
    assert (tmp_path / "runs/tiny/version_0/metrics.csv").exists()


def test_a_run_says_where_it_is_at_the_start_and_the_end(config, caplog):
    main(["fit", "--config", config])
    said = [record.getMessage() for record in caplog.records if "run folder" in record.getMessage()]
    folder = "runs/tiny/version_0"
    assert said == [f"run folder: {folder}", f"the results are in the run folder, {folder}"]
    caplog.clear()
    main(["validate", "--config", config])
    assert "the results are in the run folder, runs/tiny/version_1" in caplog.text


def test_a_run_that_ends_with_an_error_says_what_is_left(config, capsys, caplog, monkeypatch):
    load, steps = TinyDataset.load_image, []

    def break_off(self, index):
        steps.append(index)
        if len(steps) > 12:  # of the second training step
            raise ValueError("no more")
        return load(self, index)

    monkeypatch.setattr(TinyDataset, "load_image", break_off)
    arguments = ["--data.check", "false", "--data.val", "null", "--trainer.max_steps", "9"]
    assert "no more" in error_of(capsys, "fit", "--config", config, *arguments)
    assert re.search(r"ended with an error; its run folder, runs/tiny/version_0, holds no checkpoint", caplog.text)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_run_without_an_end_leaves_no_run_folder(config, capsys, steps):
    assert f"max_steps: found {steps}" in error_of(capsys, "fit", "--config", config, "--trainer.max_steps", str(steps))
    assert not Path("runs").exists()


def test_predict_says_where_it_wrote(config, capsys):
    main(["predict", "--config", config, "--data.predict", "tests.fixtures.tiny.TinyDataset"])
    printed = capsys.readouterr().out
    folder = "runs/tiny/version_0/predictions"
    assert f"predictions of 10 images: {folder}/id, {folder}/color\n" in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--data.val", "FolderDataset", "--data.val.root", "nowhere"], "nowhere: dataset folder not found"),
        (["--data.source.has_labels", "false"], "data.source has no labels"),
        (["--data.batch_size", "30"], "found 10 images, expected at least one batch of 30"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_data_is_checked_before_a_network_may_fetch_weights(config, option, message, capsys, monkeypatch):
    def fetch(*args, **kwargs):
        raise AssertionError("the network is made first")

    monkeypatch.setattr(TinyNetwork, "__init__", functools.wraps(TinyNetwork.__init__)(fetch))
    assert message in error_of(capsys, "fit", "--config", config, *option)


def test_the_command_line_checks_data_once(config, monkeypatch):
    checks = []
    monkeypatch.setattr("lightning_uda.data.datamodule.require_usable", lambda *args, **kwargs: checks.append(args))
    main(["fit", "--config", config])
    assert [set(sets) for sets, *_ in checks] == [{"source", "target", "val"}]


def test_a_shipped_config_trains_by_its_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [f"--data.{name}.{key}" for name in ("source", "target", "val") for key in ("length=4", "size=[32, 64]")]
    main(["fit", "--config", "minicity/dacs", *small, "--trainer.max_steps=1", "--data.num_workers=0"])
    assert (tmp_path / "runs/minicity/dacs/version_0/config.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.treshold", "0.5"], "treshold"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--data.label_space", "citiscapes"], "Unknown label space 'citiscapes': expected one of"),
        (["--model", "DAX"], "DAX"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--data.batch_size", "30"], "found 10 images, expected at least one batch of 30"),
        (["--trainer.accelerator", "gpu"], "No supported gpu backend found"),
        (["--data.val", "FolderDataset", "--data.val.root", "nowhere"], "nowhere: dataset folder not found"),
        (["--data.source_sampling", "RareClass"], "Set data.source_sampling.min_pixels below"),
        (["--data.source_sampling", "LongTail"], "LongTail"),
        (["--data.target_transform", '{"crop": [16, 16]}'], "DACS mixes images of its streams"),
        (["--data.source_transform", '{"resize": [8, 8], "crop": [16, 16]}'], "found a crop of 16 x 16"),
        (["--model.network", "DeepLabV2", "--model.network.backbone", "resnet19"], "resnet19"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_message_before_training(config, capsys, tmp_path, arguments, message):
    text = error_of(capsys, "fit", "--config", config, *arguments)
    assert message in text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_checkpoint_of_other_classes_is_refused(config, capsys, tmp_path):
    main(["fit", "--config", config])
    (checkpoint,) = tmp_path.glob("runs/tiny/version_0/checkpoints/*.ckpt")
    arguments = ["fit", "--config", config, "--data.label_space", "cityscapes", "--ckpt_path", str(checkpoint)]
    for name in ("source", "target", "val"):
        arguments += [f"--data.{name}", "MiniCity", f"--data.{name}.size", "[32, 64]"]
    assert ": trained on 11 classes" in error_of(capsys, *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello", "can't be read as a checkpoint"), ({"model": {}}, "no checkpoint of a run (it lacks")],
    ids=["text", "weights"],
)
def test_a_file_that_is_no_checkpoint_is_refused(config, capsys, tmp_path, content, message):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert message in error_of(capsys, "validate", "--config", config, "--ckpt_path", str(path))


def write_folder(root, labels):
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"ids": {"0": "Sky", "1": "Road"}, "ignore": 255}))
    for i, label in enumerate(labels):
        cv2.imwrite(str(root / f"images/{i}.png"), TinyDataset().load_image(i))
        cv2.imwrite(str(root / f"labels/{i}.png"), np.full((24, 32), label, np.uint8))


def test_data_check_lists_counts_and_every_problem(config, capsys, tmp_path):
    write_folder(tmp_path / "good", [0, 1, 255])
    write_folder(tmp_path / "bad", [0, 7, 9])
    for root, status in (("good", 0), ("bad", 1)):
        folder = ["--data.source", "FolderDataset", "--data.source.root", str(tmp_path / root)]
        with pytest.raises(SystemExit) as end:
            main(["data", "check", "--config", config, *folder])
        assert end.value.code == status
        out = capsys.readouterr().out
        assert "3 images" in out
        if status:
            assert "found ids [7]" in out
            assert "found ids [9]" in out
        else:
            assert "no problems found" in out


def test_help_documents_the_arguments_of_a_method(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "DACS"])
    out = capsys.readouterr().out
    for argument in ("pixel_weighting", "augmentation", "paste_mask", "network", "schedule"):
        assert f"--model.{argument}" in out
    assert "Weights of the mixed image's pixels" in " ".join(out.split())


def test_module_and_script_are_the_same_program():
    (script,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    assert script == ("lightning-uda", f"{main.__module__}:main")
    result = subprocess.run(
        [sys.executable, "-m", "lightning_uda", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout == f"lightning-uda {importlib.metadata.version('lightning-uda')}\n"


def test_help_lists_every_command_with_a_sentence(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert set(TRAINER) == UDACLI.subcommands().keys()
    for words, what in (TRAINER | {words: command.what for words, command in COMMANDS.items()}).items():
        assert re.fullmatch(r"[A-Z].*\.", what)
        assert re.search(rf"\n  {words} .*  {re.escape(what)}\n", out)
    for option in ("-h, --help", "--version", "-c FILE, --config FILE", "--print_config"):
        assert f"\n  {option} " in out


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("fitt", "did you mean 'fit'?"),
        ("data chek --config x.yaml", "did you mean 'data check'?"),
        ("data", "did you mean 'data check'?"),
        ("repotr runs/a", "did you mean 'report'?"),
        ("x", "expected one of these."),
        ("", "expected one of these."),
    ],
)
def test_a_command_that_is_none_is_answered_with_all_of_them_and_the_nearest(words, nearest, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert printed.startswith("error: found ")
    assert nearest in printed.splitlines()[0]
    assert all(f"\n  {name} " in printed for name in (*TRAINER, *COMMANDS))


def test_options_before_the_command_reach_the_trainer(capsys, tmp_path):
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"fit": {"name": "named"}}))
    demo = str(ROOT / "configs/demo/dacs.yaml")
    for options, name in (["--name", "other"], "other"), ([], "demo/dacs"):
        with pytest.raises(SystemExit):
            main(["--config", str(tmp_path / "all.yaml"), "--print_config", "fit", "--config", demo, *options])
        assert yaml.safe_load(capsys.readouterr().out)["fit"]["name"] == name


@pytest.mark.parametrize("words", COMMANDS)
def test_every_further_command_has_help_of_its_own(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--help"])
    assert end.value.code == 0
    assert f"lightning-uda {words}" in capsys.readouterr().out


def loaded_by(statements):
    """Names of the modules that a program of its own has imported in the end."""
    code = f"import sys\n{statements}\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.splitlines()[-1].split())


HEAVY = {"torch", "lightning", "jsonargparse", "numpy", "scipy", "cv2", "PIL", "albumentations"}
HEAVY |= {"torchvision", "torchmetrics", "timm", "wandb", "matplotlib", "transformers", "huggingface_hub"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["fitt"], *([*words.split(), "--help"] for words in COMMANDS)],
    ids=" ".join,
)
def test_help_is_spared_the_imports_of_training(arguments):
    loaded = loaded_by(
        f"from lightning_uda.__main__ import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    )
    assert "lightning_uda.__main__" in loaded
    assert loaded & HEAVY == set()


def test_parts_of_the_package_are_spared_what_they_do_not_need():
    assert loaded_by("import lightning_uda") & HEAVY == set()
    loaded = loaded_by("import lightning_uda.networks, lightning_uda.mixing, lightning_uda.data.streams")
    assert loaded & HEAVY == {"torch", "numpy", "cv2"}


def printed_config(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["fit", *arguments, "--print_config"])
    printed = capsys.readouterr()
    assert not end.value.code, printed.err
    return yaml.safe_load(printed.out)


def optional_arguments(node, prefix):
    """Names on the command line, and values, of all arguments below a node of a config that may be `null`."""
    if not isinstance(node, dict) or "class_path" not in node:
        return
    module, name = node["class_path"].rsplit(".", 1)
    hints = {}
    for kind in reversed(getattr(importlib.import_module(module), name).__mro__[:-1]):
        hints |= typing.get_type_hints(kind.__init__)
    for argument, value in node.get("init_args", {}).items():
        if type(None) in typing.get_args(hints.get(argument)):
            yield f"{prefix}.{argument}", value
        yield from optional_arguments(value, f"{prefix}.{argument}")


def value_at(config, name):
    for key in name.split("."):
        config = config["init_args"][key] if "class_path" in config else config[key]
    return config


@pytest.fixture(scope="module")
def program():
    """What a Python program prints that loads a shipped config: modules loaded by the import, then what it has made."""
    code = (
        "import sys\n"
        "from lightning_uda.cli import UDACLI, UDADataModule, UDAModule\n"
        "print(*sys.modules)\n"
        "cli = UDACLI(UDAModule, UDADataModule, subclass_mode_model=True, subclass_mode_data=True, run=False,\n"
        "             auto_configure_optimizers=False, args=['--config', 'configs/demo/dacs.yaml'])\n"
        "print(type(cli.model).__name__, cli.datamodule.source.size)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_python_program_can_load_a_shipped_config_without_running_it(program):
    assert program[-1] == "DACS (64, 128)"


def test_training_is_spared_the_imports_of_further_commands_and_of_parts_that_few_runs_have(program):
    loaded = set(program[0].split())
    assert "lightning_uda.methods.dacs" in loaded
    assert [name for name in loaded if name.startswith(("lightning_uda.commands.", "lightning_uda.report"))] == []
    assert loaded & {"timm", "wandb", "albumentations"} == set()


METHODS = "source_only ada_bn mean_teacher naive_class_mix distribution_alignment dacs dsp cbst_sp".split()


@pytest.mark.parametrize("row", few_of(METHODS, "distribution_alignment", "dsp", "cbst_sp"))
def test_every_argument_that_may_be_null_can_be_made_so_on_the_command_line(row, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--config", f"configs/experiment/minicity/{row}.yaml"]
    if row == "cbst_sp":
        arguments += ["--model.rounds.mining", "RareClassMining"]
    config = printed_config(capsys, *arguments)
    found = dict(optional_arguments(config["model"], "model")) | dict(optional_arguments(config["data"], "data"))
    assert len(found) > 5
    parts = [name for name, value in found.items() if isinstance(value, dict)]
    for names in ([name for name in found if name not in parts], parts):
        names = [name for name in names if not any(name.startswith(f"{part}.") for part in names)]
        changed = printed_config(capsys, *arguments, *(word for name in names for word in (f"--{name}", "null")))
        assert {name: value_at(changed, name) for name in names} == dict.fromkeys(names)


TAKEN_BACK = [
    ("cbst_sp", "model.rounds.mining", "RareClassMining"),
    ("cbst_sp", "model.rounds.spatial_prior", None),
    ("cbst_sp", "model.rounds.target_subset", "10"),
    ("cbst_sp", "model.rounds.thresholds.threshold_cap", "0.9"),
    ("dsp", "model.feature_alignment.channels", "8"),
    ("dsp", "model.network.weights", "None.ckpt"),
]


@pytest.mark.parametrize(("row", "name", "value"), few_of(TAKEN_BACK, TAKEN_BACK[0], TAKEN_BACK[3]))
def test_null_takes_back_what_was_given(row, name, value, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = ["--config", f"configs/experiment/minicity/{row}.yaml"]
    arguments += [] if value is None else [f"--{name}", value]
    assert value_at(printed_config(capsys, *arguments), name) is not None
    assert value_at(printed_config(capsys, *arguments, f"--{name}=null"), name) is None


def test_null_inside_a_collection_of_the_command_line_stays_null(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    part = '{"class_path": "RadixSelect", "init_args": {"threshold_cap": null, "scope": "global"}}'
    arguments = ["--config", "configs/experiment/minicity/cbst.yaml", "--model.rounds.thresholds", part]
    thresholds = printed_config(capsys, *arguments)["model"]["init_args"]["rounds"]["init_args"]["thresholds"]
    assert (thresholds["init_args"]["threshold_cap"], thresholds["init_args"]["scope"]) == (None, "global")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("None", None),
        ("[None, 1, 'None']", [None, 1, "None"]),
        (
            "{'a': None, 'b': {'c': [None]}, 'd': 'is None, really'}",
            {"a": None, "b": {"c": [None]}, "d": "is None, really"},
        ),
        ("{a: NoneSuch}", {"a": "NoneSuch"}),
        ("name: None\nother: 1", {"name": "None", "other": 1}),
    ],
)
def test_none_is_read_as_null_where_it_is_pythons_text(text, value):
    assert load_value(text) == value


def all_memory_of_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore.")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--data.eval_transform.resize=[5,16]", "error: data.eval_transform.resize: found [5, 16], too small for the "),
        ("--data.source_transform.crop=[5,16] --data.target_transform.crop=[5,16]", "error: Images are too small for "),
    ],
)
def test_images_that_are_too_small_for_the_network_are_refused(options, said, tmp_path):
    config = write_config(tmp_path, "SourceOnly")
    network = "--model.network tests.fixtures.tiny.LargeKernel"
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", config, *network.split(), *options.split()])
    assert str(end.value).startswith(said)
    assert "Kernel size: (9 x 9). Kernel size can't be greater than actual input size" in str(end.value)
    assert not (tmp_path / "SourceOnly").exists()
    main(["fit", "--config", config, *network.split(), "--data.eval_transform.resize=[7,16]"])


@pytest.mark.parametrize(
    ("whose", "fill", "said"),
    [
        ("GPU", all_memory_of_a_gpu, "CUDA out of memory. Tried to allocate 20 GiB."),
        ("machine", lambda: torch.empty(10**13), "[enforce fail at alloc_cpu.cpp"),
        ("machine", lambda: np.empty(10**14), "Unable to allocate 728. TiB for an array"),
    ],
)
def test_full_memory_is_answered_with_what_takes_less(whose, fill, said, tmp_path, monkeypatch):
    monkeypatch.setattr(SourceOnly, "training_step", lambda self, batch, batch_idx: fill())
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", write_config(tmp_path, "SourceOnly")])
    assert str(end.value).startswith(f"error: The {whose}'s memory is full. In the order of what it costs: ")
    assert str(end.value).splitlines()[1].startswith(f"({said}")
    assert "--model.backward_per_view true" in str(end.value)
