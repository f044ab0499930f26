"""`lightning-uda predict --images`, of a run as it comes from training."""

import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from lightning_uda.__main__ import main
from lightning_uda.cli import run_trainer
from lightning_uda.commands.predict_files import KINDS, _parser
from lightning_uda.config_files import short_names
from lightning_uda.label_spaces import CAMVID
from lightning_uda.loading import FilesCLI, TrainedCLI, find_checkpoint
from tests.fixtures.media import picture, read, read_video, save, save_video
from tests.fixtures.stages import run_stages
from tests.fixtures.tiny import TinyDataset, tiny_network

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run of DACS."""
    return run_stages(tmp_path_factory.mktemp("runs"), "DACS", stages=("fit",))["fit"].parent


def predict(run, images, output, *options):
    main(["predict", "--ckpt_path", str(run), "--output", str(output), *options, "--images", *map(str, images)])


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        predict(*arguments)
    printed = f"{capsys.readouterr().err}{error.value.code}"
    (line,) = [line for line in printed.splitlines() if "error: " in line]
    return line


def probs_of(run, pixels):
    """By hand: the student's logits, upsampled, and their softmax, (C, H, W)."""
    content = torch.load(run / "version_0/checkpoints/step=4.ckpt", weights_only=True)["state_dict"]
    network = tiny_network().eval()
    network.load_state_dict({k.removeprefix("student."): v for k, v in content.items() if k.startswith("student.")})
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        logits = network.classifier(network.backbone((image - 128) / 64))
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)[0].softmax(0).numpy()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_with_all_kinds(run, tmp_path, capsys):
    photos = tmp_path / "photos"
    save(photos / "a.png", picture(0))
    save(photos / "deep/er/a.png", picture(1, 28, 24))
    (tmp_path / "map.yaml").write_text(yaml.safe_dump({100 + i: name for i, name in enumerate(CAMVID.classes)}))
    kinds = ["color", "overlay", "id", "raw_id", "confidence"]
    options = ["--write", *kinds, "--opacity", "0.25", "--class_map", str(tmp_path / "map.yaml")]
    predict(run, [photos], tmp_path / "out", *options)
    places = ", ".join(str(tmp_path / "out" / kind) for kind in kinds)
    assert f"\npredictions of 2 images: {places}\n" in capsys.readouterr().out
    assert files(tmp_path / "out") == sorted(f"{kind}/{name}.png" for kind in kinds for name in ("a", "deep/er/a"))
    for name in ("a", "deep/er/a"):
        pixels = read(photos / f"{name}.png")
        probs = probs_of(run, pixels)
        found = {kind: read(tmp_path / f"out/{kind}/{name}.png") for kind in kinds}
        np.testing.assert_array_equal(found["id"], probs.argmax(0))
        np.testing.assert_array_equal(found["raw_id"], 100 + probs.argmax(0))
        np.testing.assert_array_equal(found["color"], np.array(CAMVID.palette)[probs.argmax(0)])
        assert np.abs(found["confidence"] - 255 * probs.max(0)).max() <= 0.51
        assert np.abs(found["overlay"] - (0.25 * found["color"] + 0.75 * pixels)).max() <= 0.51
    assert len(np.unique(found["id"])) > 1
    assert "color already holds 2 PNG files" in error_of(capsys, run, [photos], tmp_path / "out")


@pytest.mark.slow
def test_a_video_becomes_a_video_and_its_ids_frames_in_order(run, tmp_path, capsys):
    frames = [np.full((32, 48, 3), grey, np.uint8) for grey in (0, 60, 120, 180, 240)]
    for i, frame in enumerate(frames):
        frame[8 * (i % 4) :, 10 * (i % 4) :] = picture(i, 1, 1)
    save_video(tmp_path / "drive.mp4", frames)
    predict(run, [tmp_path / "drive.mp4"], tmp_path / "out", "--write", "color", "id", "overlay", "--opacity", "0")
    assert "predictions of 1 video (5 frames): " in capsys.readouterr().out
    names = [f"id/drive/{i:06d}.png" for i in range(5)]
    assert files(tmp_path / "out") == ["color/drive.mp4", *names, "overlay/drive.mp4"]
    _, shown = read_video(tmp_path / "drive.mp4")  # what the codec made of them
    rate, colors = read_video(tmp_path / "out/color/drive.mp4")
    assert rate == 12.5
    assert [frame.shape for frame in colors] == 5 * [(32, 48, 3)]
    _, overlays = read_video(tmp_path / "out/overlay/drive.mp4")
    for name, before, after in zip(names, shown, overlays, strict=True):
        np.testing.assert_array_equal(read(tmp_path / "out" / name), probs_of(run, before).argmax(0))
        assert np.abs(before.astype(float) - after).mean() < 8


def test_a_run_brings_its_own_classes_and_colours_and_needs_no_data(run, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(run / "version_0", moved)
    content = yaml.safe_load((moved / "config.yaml").read_text())
    for name in ("source", "target", "val"):
        content["data"]["init_args"][name] = {"class_path": "CamVid", "init_args": {"root": "gone"}}
    content["data"]["init_args"]["label_space"] = content["model"]["init_args"]["label_space"] = "gone.yaml"
    (moved / "config.yaml").write_text(yaml.safe_dump(content))
    space = yaml.safe_load((moved / "label_space.yaml").read_text())
    space["palette"] = [[i, 2 * i, 200] for i in range(11)]
    (moved / "label_space.yaml").write_text(yaml.safe_dump(space))
    save(tmp_path / "a.png", picture(0))
    predict(moved / "checkpoints/step=1.ckpt", [tmp_path / "a.png"], tmp_path / "out", "--write", "id", "color")
    assert "the checkpoint is of step 1" in capsys.readouterr().err
    ids = read(tmp_path / "out/id/a.png").astype(int)
    np.testing.assert_array_equal(read(tmp_path / "out/color/a.png"), np.stack([ids, 2 * ids, ids * 0 + 200], -1))


def test_the_commands_of_the_page_parse(capsys):
    commands = re.findall(r"^lightning-uda (predict .*)$", (ROOT / "docs/predict.md").read_text(), re.M)
    assert len(commands) == 4
    for command in commands[:3]:
        words = shlex.split(command)[1:]
        chosen, options = _parser().parse_known_args(words)
        assert options == []
        assert set(chosen.write) <= set(KINDS)
    with pytest.raises(SystemExit) as end:
        main([*shlex.split(commands[3].replace(" --ckpt_path last", "")), "--print_config"])
    assert end.value.code == 0, capsys.readouterr().err
    written = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"][-1]["init_args"]["outputs"]
    assert [one["class_path"].rpartition(".")[2] for one in written] == ["Overlay", "Confidence"]


@pytest.mark.parametrize("kind", [FilesCLI, TrainedCLI])
def test_weights_that_training_began_with_are_neither_fetched_nor_needed(kind, run, tmp_path):
    content = yaml.safe_load((run / "version_0/config.yaml").read_text())
    backbone = {"class_path": "TimmPyramid", "init_args": {"name": "test_resnet", "pretrained": True}}
    network = {"backbone": backbone, "head": "LinearHead", "weights": "gone.pth"}
    content["model"]["init_args"]["network"] = {"class_path": "EncoderDecoder", "init_args": network}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    cli = run_trainer(["validate", "--config", str(tmp_path / "config.yaml")], kind)
    assert cli.model.student.random_weights


@pytest.mark.slow
def test_adabn_takes_its_target_images_along(tmp_path):
    run = run_stages(tmp_path, "AdaBN", stages=("fit", "predict"))
    dataset = TinyDataset(length=4, seed=2)
    for index in range(4):
        save(tmp_path / "images" / f"{dataset.name(index)}.png", dataset.load_image(index))
    predict(run["fit"].parent, [tmp_path / "images"], tmp_path / "out", "--write", "id")
    found = files(tmp_path / "out/id")
    assert len(found) == 4
    for name in found:
        np.testing.assert_array_equal(read(tmp_path / "out/id" / name), read(run["predict"] / "predictions/id" / name))


def test_runs_checkpoints_and_images_that_are_none_are_said_in_a_line(run, tmp_path, capsys):
    save(tmp_path / "a.png", picture(0))
    arguments = ([tmp_path / "a.png"], tmp_path / "out")
    assert "--ckpt_path: found no runs/gone; expected the folder" in error_of(capsys, Path("runs/gone"), *arguments)
    assert f"{tmp_path}: found no run, with a config.yaml" in error_of(capsys, tmp_path, *arguments)
    checkpoint = tmp_path / "elsewhere/mine.ckpt"
    checkpoint.parent.mkdir()
    shutil.copy(run / "version_0/checkpoints/step=4.ckpt", checkpoint)
    assert re.search(r"mine\.ckpt: found no .*config\.yaml for it.*--config", error_of(capsys, checkpoint, *arguments))
    assert find_checkpoint(checkpoint, Path("minicity/dacs")) == (checkpoint, short_names()["minicity/dacs"])
    nearest = error_of(capsys, checkpoint, *arguments, "--config", "minicity/dac")
    assert "--config: found no file minicity/dac, and no shipped config of that name. The nearest are mini" in nearest
    version = tmp_path / "empty"
    version.mkdir()
    shutil.copy(run / "version_0/config.yaml", version)
    assert "found no whole checkpoint" in error_of(capsys, version, *arguments)
    assert "found nothing after --images" in error_of(capsys, run, [], tmp_path / "other")
    assert "--write" in error_of(capsys, run, *arguments, "--write", "colour")
    for name in ("b.png", "c.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    bad = error_of(capsys, run, [tmp_path / "b.png", tmp_path / "c.jpg"], tmp_path / "out")
    assert re.search(r"b\.png: can't be decoded as an image .* 1 further file can't be read either", bad)
    assert not (tmp_path / "out").exists()
    predict(checkpoint, *arguments, "--config", str(run / "version_0/config.yaml"))
    assert files(tmp_path / "out") == ["color/a.png", "overlay/a.png"]
    assert cv2.imread(str(tmp_path / "out/overlay/a.png")).shape == (20, 36, 3)
