"""`lightning-uda export`, of a checkpoint as it comes from training."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lightning_uda.__main__ import main
from lightning_uda.commands.network_export import ImageToScores, compare, network_of, require_onnx, traced
from lightning_uda.methods import SourceOnly
from lightning_uda.networks import EncoderDecoder, FCN8s, LinearHead, TimmPyramid
from tests.fixtures.stages import run_stages
from tests.fixtures.tiny import TinyNetwork, tiny_network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A version of a run of DACS."""
    return run_stages(tmp_path_factory.mktemp("runs"), "DACS", stages=("fit",))["fit"]


def export(run, output, *options, file_format="torch_export"):
    given = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/step=4.ckpt")]
    main(["export", *given, "--output", str(output), "--format", file_format, *options])


def error_of(capsys, *arguments, **options):
    with pytest.raises(SystemExit) as error:
        export(*arguments, **options)
    return str(error.value.code) + capsys.readouterr().err


def logits_of(run, part, image):
    """By hand: normalisation of the tiny network, its two convolutions, upsampling."""
    content = torch.load(run / "checkpoints/step=4.ckpt", weights_only=True)["state_dict"]
    network = tiny_network().eval()
    network.load_state_dict({k.removeprefix(f"{part}."): v for k, v in content.items() if k.startswith(f"{part}.")})
    with torch.no_grad():
        logits = network.classifier(network.backbone((255 * image - 128) / 64))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)


def run_file(path, image):
    return torch.export.load(path).module()(image)


def test_a_program_gives_the_logits_of_the_network_at_any_size(run, tmp_path, capsys):
    export(run, tmp_path / "a/student.pt2")
    printed = capsys.readouterr().out
    assert "student.pt2 (" in printed
    assert "the student of DACS at step 4" in printed
    assert "(1, 3, 131, 203) and (3, 3, 96, 160): largest difference of logits" in printed
    for shape in ((1, 3, 24, 32), (5, 3, 37, 51)):
        image = torch.rand(shape)
        found = run_file(tmp_path / "a/student.pt2", image)
        assert found.dtype is torch.float32
        assert torch.allclose(found, logits_of(run, "student", image), atol=1e-4)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["student.pt2"]
    assert "found" in error_of(capsys, run, tmp_path / "a/student.pt2")


def test_labels_of_the_teacher_without_the_data_and_with_other_inference(run, tmp_path, caplog, capsys):
    config = tmp_path / "config.yaml"
    config.write_text((run / "config.yaml").read_text().replace("tests.fixtures.tiny.TinyDataset", "CamVid"))
    options = ["--network", "teacher", "--gives", "labels", "--model.inference", "SlidingWindow"]
    export(run, tmp_path / "labels.pt2", *options)
    assert "the teacher of DACS" in capsys.readouterr().out
    assert "evaluated by SlidingWindow; the file passes whole images" in caplog.text
    image = torch.rand(2, 3, 28, 36)
    found = run_file(tmp_path / "labels.pt2", image)
    logits = logits_of(run, "teacher", image)
    assert found.dtype is torch.uint8
    assert found.shape == (2, 28, 36)
    assert (logits.amax(1) - logits.gather(1, found.long()[:, None])[:, 0]).max() < 1e-4


def test_the_command_and_the_python_of_the_page_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run / "checkpoints/last.ckpt").write_bytes((run / "checkpoints/step=4.ckpt").read_bytes())
    Path("runs/minicity/dacs").mkdir(parents=True)
    Path("runs/minicity/dacs/version_0").symlink_to(run)
    page = (ROOT / "docs/export.md").read_text()
    (command,) = re.findall(r"^lightning-uda (export .*)$", page, re.M)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    main(shlex.split(command))
    names = {}
    exec(code, names)
    assert names["logits"].shape == (1, 11, 96, 192)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FCN8s(5, backbone="vgg11_bn", fc_channels=8),
        lambda: EncoderDecoder(5, TimmPyramid("test_resnet"), LinearHead()),
    ],
)
def test_networks_that_pad_and_crop_export_for_all_sizes(make):
    model = ImageToScores(make().requires_grad_(False), "logits").eval()
    checks = compare(model, traced(model, None).module(), None)
    assert [check.shape for check in checks] == [(1, 3, 131, 203), (3, 3, 96, 160)]


class Windows(TinyNetwork):
    """Its program depends on the width."""

    def outputs(self, image):
        parts = [super(Windows, self).outputs(part) for part in image.split(32, dim=3)]
        logits = torch.cat([part.classifiers[0].logits for part in parts], dim=3)
        return parts[0]._replace(classifiers=(parts[0].classifiers[0]._replace(logits=logits),))


def test_what_cannot_be_of_any_size_is_said_and_may_be_of_one(tmp_path):
    model = ImageToScores(Windows(5).requires_grad_(False), "logits").eval()
    with pytest.raises(ValueError, match=r"Windows can't be exported for images of any size.*Give --size HEIGHT WIDTH"):
        compare(model, traced(model, None).module(), None)
    checks = compare(model, traced(model, (32, 64)).module(), (32, 64))
    assert [check.shape for check in checks] == [(1, 3, 32, 64), (3, 3, 32, 64)]


@pytest.mark.parametrize("gives", ["logits", "labels"])
def test_a_file_that_differs_is_refused(gives):
    model = ImageToScores(tiny_network().requires_grad_(False), gives).eval()

    def wrong(image):
        logits = model.logits(image).clone()
        logits[0, 3, 5, 7] += 1.5e-4 * max(1, float(logits.abs().max())) if gives == "logits" else 100
        return logits if gives == "logits" else logits.argmax(1).byte()

    with pytest.raises(ValueError, match=r"differs from PyTorch by .* on images \(1, 3, 131, 203\)"):
        compare(model, wrong, None)
    assert len(compare(model, model, None)) == 2


def test_wrong_options_are_said(run, tmp_path, capsys):
    said = error_of(capsys, run, tmp_path / "x", "--size", "0", "5")
    assert "--size: found [0, 5], expected numbers from 1 to 10000" in said
    assert "--ckpt_path: found none" in error_of(capsys, run, tmp_path / "x", "--ckpt_path", "null")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match=r"--network: found teacher, but SourceOnly has none"):
        network_of(SourceOnly(network=tiny_network(), label_space="camvid"), "teacher")


def has_onnx():
    try:
        require_onnx()
    except ValueError:
        return False
    return True


@pytest.mark.skipif(has_onnx(), reason="onnx is installed")
def test_onnx_that_is_not_installed_is_said(run, tmp_path, capsys):
    text = error_of(capsys, run, tmp_path / "x.onnx", file_format="onnx")
    assert text.startswith("error: --format onnx: found no ")
    assert 'pip install "lightning_uda[export]"' in text


@pytest.mark.skipif(not has_onnx(), reason="the extra `export` isn't installed: onnx, onnxscript, onnxruntime")
@pytest.mark.parametrize("gives", ["logits", "labels"])
def test_onnx_gives_what_the_network_gives(run, tmp_path, gives):
    import onnxruntime

    export(run, tmp_path / "student.onnx", "--gives", gives, file_format="onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 24, 32), (5, 3, 37, 51)):
        image = torch.rand(shape)
        found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        logits = logits_of(run, "student", image)
        if gives == "logits":
            assert torch.allclose(found, logits, atol=1e-4)
        else:
            assert (logits.amax(1) - logits.gather(1, found.long()[:, None])[:, 0]).max() < 1e-4
