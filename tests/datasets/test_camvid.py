import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_uda.data.dataset import DatasetError
from lightning_uda.datasets.camvid import CamVid
from lightning_uda.label_spaces import CAMVID

REAL = Path(__file__).parents[3] / "shared" / "data" / "camvid"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real CamVid isn't here")


@pytest.fixture
def root(tmp_path):
    for folder in ("images", "labels", "splits"):
        (tmp_path / folder).mkdir()
    for name in ("0001TP_1", "0006R0_1", "0006R0_2"):
        Image.new("RGB", (12, 9)).save(tmp_path / "images" / f"{name}.jpg")
        label = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12) % 13
        label[label == 12] = 255
        Image.fromarray(label).save(tmp_path / "labels" / f"{name}.png")
    (tmp_path / "splits" / "train.txt").write_text("0006R0_1\n0006R0_2\n")
    return tmp_path


def test_splits_by_name_and_by_path(root):
    (root / "dusk.txt").write_text("0001TP_1\n")
    assert len(CamVid(str(root))) == 3
    assert len(CamVid(str(root), "train")) == 2
    assert CamVid(str(root), "dusk.txt").name(0) == "0001TP_1"
    assert CamVid(str(root), str(root / "dusk.txt")).name(0) == "0001TP_1"
    with pytest.raises(DatasetError, match=r"splits/train\.txt"):
        CamVid(str(root), "vla")


def test_both_void_ids_are_tolerated(root):
    dataset = CamVid(str(root))
    assert dataset.check() == []
    assert [i for i, name in dataset.class_ids.items() if name is None] == [11, 255]
    train_ids = CAMVID.lookup_table(dataset.class_ids)[dataset.load_label(0)]
    np.testing.assert_array_equal(np.unique(train_ids), [*range(11), 255])


def test_other_ids_are_errors(root):
    Image.fromarray(np.full((9, 12), 12, np.uint8)).save(root / "labels" / "0001TP_1.png")
    (problem,) = CamVid(str(root)).check()
    assert problem.what.startswith("found ids [12] (pixels: 12: 108), expected only 0-11, 255")


def test_unlabelled_target_needs_no_labels(root):
    for file in (root / "labels").iterdir():
        file.unlink()
    dataset = CamVid(str(root), "train", labelled=False)
    assert (len(dataset), dataset.has_labels) == (2, False)
    with pytest.raises(DatasetError, match="none of the 3 images has a label"):
        CamVid(str(root))


def names(dataset):
    return [dataset.name(index) for index in range(len(dataset))]


@pytest.fixture
def drive(tmp_path):
    """Five frames, listed in an order that isn't that of their names; pixels tell them apart."""
    for folder in ("images", "labels", "splits"):
        (tmp_path / folder).mkdir()
    for number in range(5):
        Image.new("RGB", (12, 9), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        Image.new("L", (12, 9), number).save(tmp_path / "labels" / f"{number}.png")
    (tmp_path / "splits/dusk.txt").write_text("4\n0\n3\n1\n2\n")
    return tmp_path


def test_folds_are_the_halves_of_the_list_in_its_order(drive):
    assert names(CamVid(str(drive), "dusk", fold=0, held_out=True)) == ["4", "0", "3"]
    assert names(CamVid(str(drive), "dusk", fold=0)) == ["1", "2"]
    assert names(CamVid(str(drive), "dusk", fold=1, held_out=True)) == ["1", "2"]
    assert names(CamVid(str(drive), "dusk", fold=1)) == ["4", "0", "3"]
    assert names(CamVid(str(drive), fold=1, held_out=True)) == ["3", "4"]


def test_a_fold_has_its_own_images_and_labels(drive):
    fold = CamVid(str(drive), "dusk", fold=1, held_out=True)
    for index, number in enumerate((1, 2)):
        assert fold.load_image(index)[0, 0, 0] == fold.load_label(index)[0, 0] == number
    assert fold.check() == []
    target = CamVid(str(drive), "dusk", labelled=False, fold=0)
    assert (len(target), target.has_labels) == (2, False)
    fingerprints = {CamVid(str(drive), "dusk", fold=half).fingerprint() for half in (None, 0, 1)}
    assert len(fingerprints) == 3


def test_labels_of_the_other_half_are_not_missed(drive):
    for number in (1, 2):
        (drive / f"labels/{number}.png").unlink()
    assert CamVid(str(drive), "dusk", fold=0, held_out=True).check() == []
    (problem,) = CamVid(str(drive), "dusk", fold=0).check()
    assert problem.what.startswith("2 of 2 images have no label: 1.png, 2.png")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"fold": 2}, "held_out: false` with `fold: 2`"),
        ({"fold": -1, "held_out": True}, "held_out: true` with `fold: -1`"),
        ({"held_out": True}, "held_out: true` with `fold: None`"),
    ],
)
def test_folds_that_are_not_there_are_refused(drive, arguments, found):
    with pytest.raises(DatasetError, match=rf"CamVid: found `{found}; expected a fold from 0 to 1\."):
        CamVid(str(drive), "dusk", **arguments)


@needs_real
def test_real_dusk_halves_are_consecutive():
    split = "../camvid_day2dusk/target_train.txt"
    first, second = (CamVid(str(REAL), split, fold=fold, held_out=True) for fold in (0, 1))
    assert (len(first), len(second)) == (31, 31)
    assert max(names(first)) < min(names(second))


@needs_real
@pytest.mark.parametrize(
    ("split", "count"),
    [
        (None, 468),
        ("train", 367),
        ("val", 101),
        ("../camvid_day2dusk/source_train.txt", 305),
        ("../camvid_day2dusk/source_val.txt", 101),
        ("../camvid_day2dusk/target_train.txt", 62),
    ],
)
def test_real_frames_are_all_found(split, count):
    dataset = CamVid(str(REAL), split)
    assert len(dataset) == count
    assert dataset.load_image(count - 1).shape == (360, 480, 3)
    assert dataset.load_label(count - 1).shape == (360, 480)


@needs_real
def test_real_class_map_is_ours():
    ids = json.loads((REAL / "classes.json").read_text())["ids"]
    class_ids = CamVid(str(REAL), "val").class_ids
    assert {int(i): name for i, name in ids.items()} == {i: name for i, name in class_ids.items() if name is not None}


@needs_real
def test_real_validation_frames_have_no_problems():
    assert CamVid(str(REAL), "val").check() == []
