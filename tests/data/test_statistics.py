import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lightning_uda.data import counts
from lightning_uda.data.cache import CachedDataset
from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.statistics import ClassStatistics, class_statistics
from lightning_uda.datasets.folder import FolderDataset
from lightning_uda.label_spaces import CAMVID, CITYSCAPES16, LabelSpace
from tests.fixtures.tiny import TinyDataset

SYNTHIA_IMAGES = (
    9396, 9400, 9397, 3952, 7497, 9394, 6383, 8863, 9167, 8841, 9398, 9354, 9008, 7204, 7881, 9360,
)  # fmt: skip


class Sealed(TinyDataset):
    """Has the fingerprint of TinyDataset, but its labels can't be opened."""

    __module__, __qualname__ = TinyDataset.__module__, TinyDataset.__qualname__
    __name__ = "TinyDataset"

    def load_label(self, index):
        raise AssertionError("a label was opened")


Sealed.__name__ = "TinyDataset"


def count(dataset=None, folder=None, label_space=CAMVID):
    return class_statistics(dataset or TinyDataset(), label_space, folder, progress=False)


def made_of_images(images, total):
    """Statistics in which class c is in the first images[c] of all images."""
    held = np.arange(total)[:, None] < np.array(images)
    return ClassStatistics(CITYSCAPES16.classes[: len(images)], held.astype(np.int64) * 7)


def test_counts_are_those_of_the_label_maps(tmp_path):
    dataset = TinyDataset()
    found = count(dataset, tmp_path)
    labels = [dataset.load_label(i) for i in range(len(dataset))]
    assert found.classes == CAMVID.classes
    assert found.num_images == 10
    for c in range(11):
        pixels = [int((label == c).sum()) for label in labels]
        assert found.counts[:, c].tolist() == pixels
        assert found.pixels[c] == sum(pixels)
        assert found.images[c] == sum(p > 0 for p in pixels)
        assert found.images_with(c).tolist() == [i for i, p in enumerate(pixels) if p]
        assert found.images_with(c, 200).tolist() == [i for i, p in enumerate(pixels) if p >= 200]
    assert 0 < len(found.images_with(0, 200)) < 10
    assert found.image_frequency.tolist() == [n / 10 for n in found.images]
    valid = sum(int((label != 255).sum()) for label in labels)
    assert found.pixel_frequency.tolist() == [p / valid for p in found.pixels]
    assert not np.isnan(ClassStatistics(("a",), np.zeros((2, 1), np.int64)).pixel_frequency).any()


def test_the_rarest_classes_of_synthia():
    found = made_of_images(SYNTHIA_IMAGES, 9400)
    assert found.images.tolist() == list(SYNTHIA_IMAGES)
    assert [found.classes[i] for i in found.least_frequent(4)] == ["wall", "traffic light", "bus", "fence"]
    assert sorted(found.least_frequent(4)) == [3, 4, 6, 13]
    assert found.image_frequency[3] == pytest.approx(0.42043, abs=1e-5)


def test_classes_that_never_occur_are_not_the_rarest():
    found = made_of_images([5, 0, 2, 2, 9], 9)
    assert found.least_frequent(0) == []
    assert found.least_frequent(2) == [2, 3]
    assert found.least_frequent(4) == [2, 3, 0, 4]
    with pytest.raises(ValueError, match="k = 5 least frequent classes wanted, but 4 of 5 classes occur"):
        found.least_frequent(5)


def test_several_raw_ids_of_one_class_add_up_and_foreign_classes_are_void(tmp_path):
    dataset = TinyDataset()
    dataset.class_ids = {0: "Car", 1: "Car", 2: "moon"}
    found = count(dataset, tmp_path)
    labels = [dataset.load_label(i) for i in range(len(dataset))]
    assert found.counts[:, CAMVID.classes.index("Car")].tolist() == [int((label < 2).sum()) for label in labels]
    assert found.pixels.sum() == found.pixels[CAMVID.classes.index("Car")]


def test_labels_are_counted_once_for_all_label_spaces(tmp_path):
    assert TinyDataset().fingerprint() == Sealed().fingerprint()
    first = count(TinyDataset(), tmp_path)
    assert np.array_equal(count(Sealed(), tmp_path).counts, first.counts)
    other = LabelSpace("two", ("Pole", "Sky"), ((0, 0, 0), (1, 1, 1)))
    found = count(Sealed(), tmp_path, other)
    assert np.array_equal(found.counts, first.counts[:, [2, 0]])
    with pytest.raises(AssertionError, match="a label was opened"):
        count(Sealed(seed=5), tmp_path)


@pytest.mark.parametrize(
    "damage", ["empty", "junk", "cut off", "other length", "other content", "other ids", "missing"]
)
def test_a_damaged_file_is_counted_again(tmp_path, damage):
    expected = count(TinyDataset(), tmp_path).counts
    (path,) = tmp_path.glob("*.npz")
    if damage == "other length":
        np.savez(path, ids=np.arange(3), counts=np.ones((9, 3), np.int64))
    elif damage == "other content":
        np.savez(path, ids=np.array(["a"]), counts=np.ones((10, 1), np.int64))
    elif damage == "other ids":
        np.savez(path, ids=np.arange(300), counts=np.ones((10, 300), np.int64))
    elif damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "junk": b"junk", "cut off": data[: len(data) // 2]}[damage])
    assert np.array_equal(count(TinyDataset(), tmp_path).counts, expected)
    assert np.array_equal(count(Sealed(), tmp_path).counts, expected)  # mended


def test_a_changed_label_is_counted_again(tmp_path):
    for folder, image in (("images", Image.new("RGB", (6, 4))), ("labels", Image.new("L", (6, 4), 1))):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "a.png")

    def counted():
        dataset = FolderDataset(str(tmp_path), class_map={0: "Sky", 1: "Building"})
        return count(dataset, tmp_path / "cache").pixels[:2].tolist()

    assert counted() == [0, 24]
    label = Image.new("L", (6, 4), 1)
    label.putpixel((2, 2), 0)
    label.save(tmp_path / "labels" / "a.png")
    assert counted() == [1, 23]


def test_resized_labels_are_not_taken_for_those_of_the_files(tmp_path):
    full = count(TinyDataset(), tmp_path)
    resized = count(CachedDataset(TinyDataset(), tmp_path, (12, 16), labels=True), tmp_path)
    assert 3 < full.pixels.sum() / resized.pixels.sum() < 5


def test_the_user_cache_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv(counts.CACHE_VARIABLE, str(tmp_path / "mine"))
    count()
    assert [path.suffix for path in sorted((tmp_path / "mine").iterdir())] == [".lock", ".npz"]
    monkeypatch.delenv(counts.CACHE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert counts.counts_folder(None) == tmp_path / "home" / ".cache" / "lightning_uda"


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="can't be kept"):
        found = count(TinyDataset(), tmp_path / "file")
    assert found.images[0] == 10
    monkeypatch.setattr(np, "savez_compressed", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.warns(UserWarning, match=r"can't be kept \(.*full\)"):
        again = count(TinyDataset(), tmp_path / "full")
    assert np.array_equal(again.counts, found.counts)
    assert [path.suffix for path in (tmp_path / "full").iterdir()] == [".lock"]


def test_a_set_without_labels_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="class statistics need labels"):
        count(TinyDataset(has_labels=False), tmp_path)


def test_of_two_processes_one_counts(tmp_path):
    """Both are started before either has counted; each leaves its process id in a file of its own when it does."""
    code = """
import os, sys, time
from pathlib import Path
import numpy as np
from lightning_uda.data.counts import load_or_count
folder = Path(sys.argv[1])
(folder / f"ready_{os.getpid()}").touch()
while len(list(folder.glob("ready_*"))) < 2:
    time.sleep(0.01)
def count():
    (folder / f"counted_{os.getpid()}").touch()
    time.sleep(0.5)
    return {"counts": np.arange(3)}
print(load_or_count(folder / "a.npz", lambda arrays: arrays["counts"].shape == (3,), count, "counts")["counts"])
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["[0 1 2]\n"] * 2
    assert len(list(tmp_path.glob("counted_*"))) == 1
