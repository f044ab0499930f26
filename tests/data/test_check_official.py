"""Every trap of the public datasets is listed by one `data check`, each under its file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_uda.__main__ import main
from lightning_uda.commands.data_check import check_data
from lightning_uda.data.check import scan
from lightning_uda.datasets import BDD100K, GTA5, NTHU, SYNTHIA, Cityscapes
from lightning_uda.label_spaces import CITYSCAPES, CITYSCAPES16, NTHU13
from tests.fixtures.make_folder_dataset import cut_off, random_image
from tests.fixtures.official_layouts import (
    make_bdd100k,
    make_cityscapes,
    make_gta5,
    make_nthu,
    make_synthia,
    save_rgb16,
)

CONFIGS = Path(__file__).parents[2] / "configs"
RNG = np.random.default_rng(3)


def save(pixels, path):
    Image.fromarray(pixels).save(path)


def break_gta5(root):
    """Pairs 1 to 9 of 9; the last differs in size from the start."""
    make_gta5(root, count=9)
    images, labels = root / "images", root / "labels"
    cut_off(images / "00001.png")
    (labels / "00002.png").write_bytes(b"")
    with Image.open(labels / "00003.png") as palette:
        palette.convert("RGB").save(labels / "00003.png")
    (labels / "00004.png").unlink()
    with Image.open(labels / "00005.png") as palette:
        ids = np.array(palette)
    ids[0, :2] = 77
    save(ids, labels / "00005.png")
    (images / "00007.png").write_text("<html>404</html>")
    save(np.full((29, 39), 255, np.uint8), labels / "00008.png")
    problems = {
        "images/00001.png": "the file is cut off",
        "labels/00002.png": "label isn't a PNG file (empty); expected a PNG of class ids",
        "labels/00003.png": "label is a PNG of kind RGB colour; expected a single-channel PNG (grey or palette)",
        "": "1 of 9 GTA5 images have no label in labels/: 00004.",
        "images/00007.png": "can't be decoded as an image (begins with b'<html>40')",
    }
    warnings = {
        "": "found 9 images; the whole set has 24966.",
        "labels/00005.png": "found ids [77] (pixels: 77: 2) that this dataset isn't known to hold; they count as void",
        "labels/00008.png": "no pixel has a class of the label space",
        "labels/00009.png": "label is 30 x 39 (height x width), its image 28 x 37; this dataset is known for it",
    }
    return problems, warnings


def break_synthia(root):
    made = make_synthia(root, count=7)
    labels = root / "RAND_CITYSCAPES/GT/LABELS"
    ids = made["0000000"][1]
    save(ids, labels / "0000000.png")
    save(np.stack([ids] * 3, axis=2), labels / "0000001.png")
    save_rgb16(ids + np.uint16(300), ids, labels / "0000002.png")
    save_rgb16(ids[:9], ids[:9], labels / "0000003.png")
    cut_off(labels / "0000004.png")
    (labels / "0000005.png").unlink()
    save_rgb16(np.full_like(ids, 200), ids, labels / "0000006.png")
    top = "RAND_CITYSCAPES/GT/LABELS"
    problems = {
        f"{top}/0000000.png": "label is a PNG of kind grey, 8 bits; expected RGB colour of 16 bits per channel",
        f"{top}/0000001.png": "label is a PNG of kind RGB colour, 8 bits; expected RGB colour of 16 bits",
        f"{top}/0000002.png": "found 16-bit ids up to 322, expected class ids below 256",
        f"{top}/0000003.png": "label is 9 x 33 (height x width), its image 19 x 33; expected equal sizes",
        f"{top}/0000004.png": "the file is cut off",
        "": "1 of 7 SYNTHIA-RAND-CITYSCAPES images have no label in GT/LABELS/: 0000005.",
    }
    return problems, {
        "": "found 7 images; the whole set has 9400.",
        f"{top}/0000006.png": ("found ids [200]", "no pixel"),
    }


def break_cityscapes(root):
    made = make_cityscapes(root)["train"]
    label = {name: root / f"gtFine/train/{name.split('_')[0]}/{name}_gtFine_labelIds.png" for name in made}
    first, second, third = made
    instances = made[first][1].astype(np.uint16) * 1000
    save(instances, label[first])
    save(made[second][1].repeat(2, axis=0), label[second])
    save(np.where(made[third][1] == 7, 99, made[third][1]).astype(np.uint8), label[third])
    problems = {
        str(label[first].relative_to(root)): f"found 16-bit ids up to {instances.max()}, expected class ids below 256",
        str(label[second].relative_to(root)): "label is 64 x 64 (height x width), its image 32 x 64; expected equal",
    }
    unknown = f"found ids [99] (pixels: 99: {(made[third][1] == 7).sum()})"
    return problems, {"": "found 3 images; the whole set has 2975.", str(label[third].relative_to(root)): unknown}


def break_bdd100k(root):
    made = make_bdd100k(root)["train"]
    masks, images = root / "bdd100k/labels/sem_seg/masks/train", root / "bdd100k/images/10k/train"
    first, second = made
    save(random_image(RNG, (18, 32)), masks / f"{first}.png")
    cut_off(images / f"{second}.jpg")
    problems = {
        str((masks / f"{first}.png").relative_to(root)): "label is a PNG of kind RGB colour; expected a single-channel",
        str((images / f"{second}.jpg").relative_to(root)): "the file is cut off",
    }
    return problems, {"": "found 2 images; the whole set has 7000."}


def break_nthu(root):
    made = make_nthu(root, cities=("Rome",), count=4)["rome"]
    labels, images = root / "NTHU_Datasets/Rome/Labels/Test", root / "NTHU_Datasets/Rome/Images/Test"
    first, second, third, _ = made
    Image.fromarray(made[first][1]).save(labels / f"{first}_eval.png", format="JPEG")
    (labels / f"{second}_eval.png").unlink()
    (images / f"{third}.jpg").write_bytes(b"")
    problems = {
        str((labels / f"{first}_eval.png").relative_to(root)): "label is a JPEG file; JPEG is lossy",
        str((images / f"{third}.jpg").relative_to(root)): "empty file (0 bytes), expected an image",
        "": f"1 of 4 NTHU images have no label in Rome/Labels/Test/: {second}.",
    }
    return problems, {"": "found 4 images; the whole set has 100."}


SETS = {
    "gta5": (break_gta5, GTA5, CITYSCAPES),
    "synthia": (break_synthia, SYNTHIA, CITYSCAPES16),
    "cityscapes": (break_cityscapes, Cityscapes, CITYSCAPES),
    "bdd100k": (break_bdd100k, BDD100K, CITYSCAPES),
    "nthu": (break_nthu, lambda root: NTHU(root, "rome"), NTHU13),
}


def assert_lists(found, expected, root):
    """Each problem found is expected under its file, and each expected one is found."""
    wanted = {str(root / where): [what] if isinstance(what, str) else list(what) for where, what in expected.items()}
    listed = [(problem.where, problem.what) for problem in found]
    assert sorted(where for where, _ in listed) == sorted(where for where, whats in wanted.items() for _ in whats)
    for where, whats in wanted.items():
        for what in whats:
            assert any(place == where and text.startswith(what) for place, text in listed), (where, what, listed)


@pytest.mark.parametrize("name", SETS)
def test_a_scan_lists_every_trap_and_nothing_else(name, tmp_path):
    make, reader, space = SETS[name]
    problems, warnings = make(tmp_path)
    report = scan(reader(str(tmp_path)), space, progress=False)
    assert_lists(report.problems, problems, tmp_path)
    assert_lists([warning for warning in report.warnings if warning.where != "class map"], warnings, tmp_path)


def test_one_data_check_lists_the_problems_of_all_datasets(tmp_path, monkeypatch, capsys):
    expected = {str(tmp_path / "gta5" / where): what for where, what in break_gta5(tmp_path / "gta5")[0].items()}
    target = break_bdd100k(tmp_path / "bdd100k")[0]
    broken_image = next(where for where in target if where.endswith(".jpg"))
    expected[str(tmp_path / "bdd100k" / broken_image)] = target[broken_image]
    val = tmp_path / "bdd100k/bdd100k/labels/sem_seg/masks/val"
    lost = min(val.iterdir())
    lost.unlink()
    expected[str(tmp_path / "bdd100k")] = f"1 of 2 BDD100K images have no label in labels/: {lost.stem}."
    monkeypatch.chdir(tmp_path)
    arguments = ["data", "check", "--data", str(CONFIGS / "data/gta5_to_bdd100k.yaml")]
    arguments += ["--model", str(CONFIGS / "method/source_only.yaml")]
    arguments += ["--model.network", str(CONFIGS / "network/deeplab_v2_resnet18.yaml")]
    arguments += ["--data.source.root", str(tmp_path / "gta5")]
    for name in ("target", "val"):
        arguments += [f"--data.{name}.root", str(tmp_path / "bdd100k")]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if "───" in line and line.split()[0] in ("source", "target", "val")]
    assert [line.split()[0] for line in headings] == ["source", "target", "val"]
    for where, what in expected.items():
        assert any(
            line == f"  {where}" and lines[i + 1].startswith(f"    {what}") for i, line in enumerate(lines[:-1])
        ), (where, what)


def test_sets_that_cannot_be_read_are_all_named_in_one_pass(tmp_path, capsys):
    make_gta5(tmp_path / "gta5")
    config = str(Path(__file__).parents[2] / "configs/experiment/gta5_to_cityscapes/dacs.yaml")
    missing = [f"--data.{name}.root={tmp_path / folder}" for name, folder in (("target", "no1"), ("val", "no2"))]
    status = check_data(["--config", config, f"--data.source.root={tmp_path / 'gta5'}", *missing])
    printed = " ".join(capsys.readouterr().out.split())
    assert status == 1
    assert "data.target can't be read" in printed
    assert "data.val can't be read" in printed
    assert "no1" in printed
    assert "no2" in printed
    assert "no problems found" in printed  # of the source
