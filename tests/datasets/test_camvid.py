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
