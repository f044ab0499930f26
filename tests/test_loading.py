"""`lightning_uda.load`, and the pages' Python."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import lightning_uda
from lightning_uda.checkpoints import CheckpointError
from lightning_uda.methods import DACS, SourceOnly
from tests.fixtures.stages import run_stages
from tests.fixtures.tiny import TinyDataset, tiny_network

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run of DACS with a version that trained, for 4 steps, and one that only evaluated."""
    return run_stages(tmp_path_factory.mktemp("runs"), "DACS", stages=("fit", "validate"))["fit"].parent


def state(run, step):
    return torch.load(run / f"version_0/checkpoints/step={step}.ckpt", weights_only=True)["state_dict"]


def equal(method, tensors):
    found = method.state_dict()
    return found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


def test_a_run_gives_its_method_data_and_config(run):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    method, data, config = lightning_uda.load(run)
    assert torch.equal(torch.rand(1), expected)
    assert type(method) is DACS
    assert not method.training
    assert equal(method, state(run, 4))
    assert isinstance(data.source, TinyDataset)
    assert config == yaml.safe_load((run / "version_0/config.yaml").read_text())
    image = torch.randint(0, 256, (1, 3, 24, 32), dtype=torch.uint8)
    network = tiny_network().eval()
    network.load_state_dict(
        {k.removeprefix("student."): v for k, v in state(run, 4).items() if k.startswith("student.")}
    )
    logits = torch.nn.functional.interpolate(network(image / 255), (24, 32), mode="bilinear", align_corners=True)
    with torch.no_grad():
        assert torch.equal(method.predict_labels(image, (24, 32)), logits.argmax(1))


def test_another_checkpoint_no_weights_no_data(run):
    by_name = lightning_uda.load(str(run / "version_0"), "step=1", data=False)
    assert equal(by_name.method, state(run, 1))
    assert by_name.data.source is by_name.data.val is None
    method = lightning_uda.load(run, weights=False, data=False).method
    assert method.student.random_weights
    assert not equal(method, state(run, 1))


def test_what_is_not_there_is_said(run, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"found no run, with a config\.yaml.*such as runs/NAME"):
        lightning_uda.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"found no file best; expected a path, or one of \['step=1\.ckpt'"):
        lightning_uda.load(run, "best")
    with pytest.raises(ValueError, match=r"checkpoint='step=1' beside weights=False"):
        lightning_uda.load(run, "step=1", weights=False)
    version = tmp_path / "version_0"
    version.mkdir()
    (version / "notes.txt").touch()
    content = yaml.safe_load((run / "version_0/config.yaml").read_text())
    (version / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(CheckpointError, match=r"found no whole checkpoint.*weights=False"):
        lightning_uda.load(tmp_path)
    content["model"]["init_args"]["gone"] = 1
    (version / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"config\.yaml: can't be read by this version of lightning-uda"):
        lightning_uda.load(tmp_path, weights=False)
    assert "gone" in capsys.readouterr().err


def test_load_from_checkpoint_works_with_the_parts_and_else_says_what_to_call(run):
    path = run / "version_0/checkpoints/step=4.ckpt"
    with pytest.raises(ValueError, match=r"DACS\.load_from_checkpoint: found no network and no label_space.*uda\.load"):
        DACS.load_from_checkpoint(path)
    assert equal(DACS.load_from_checkpoint(path, network=tiny_network(1), label_space="camvid"), state(run, 4))
    with pytest.raises(ValueError, match="doesn't fit SourceOnly"):
        SourceOnly.load_from_checkpoint(path, network=tiny_network(), label_space="camvid")


def test_the_python_of_the_page_trains_in_so_many_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    lines = [line for line in blocks[0].splitlines() if line and not line.startswith(("from", "import"))]
    assert len(lines) <= 15
    short = [
        ("400, (96, 192)", "4, (16, 32)"),
        ("resnet18", "test_resnet"),
        ('max_steps": 800', 'max_steps": 1'),
        ('interval": 400', 'interval": 1'),
    ]
    for long, shorter in short:
        assert long in blocks[0]
        blocks[0] = blocks[0].replace(long, shorter)
    names = {}
    exec(blocks[0].replace("batch_size=4", "batch_size=2, num_workers=0"), names)
    assert names["trainer"].global_step == 1
    assert 0 <= names["trainer"].callback_metrics["val/miou"] <= 100
