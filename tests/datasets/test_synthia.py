import numpy as np
import pytest
from PIL import Image

from lightning_uda.data.check import scan
from lightning_uda.datasets import SYNTHIA, DatasetError
from lightning_uda.label_spaces import CITYSCAPES, CITYSCAPES16
from tests.fixtures.official_layouts import make_synthia, save_rgb16

GOLDEN = "dacs_label_maps"


@pytest.fixture
def made(tmp_path):
    return make_synthia(tmp_path)


def test_ids_equal_the_references(golden):
    np.testing.assert_array_equal(
        CITYSCAPES.lookup_table(SYNTHIA.class_ids), golden(GOLDEN).numpy("synthia_id_to_train19")
    )
    for name, key in ((GOLDEN, "synthia_id_to_train16"), ("cbst_label_luts", "synthia_id_to_16")):
        np.testing.assert_array_equal(CITYSCAPES16.lookup_table(SYNTHIA.class_ids), golden(name).numpy(key))


@pytest.mark.parametrize("below", ["", "RAND_CITYSCAPES"])
def test_root_may_be_the_unpacked_folder_or_the_one_above(tmp_path, made, below):
    dataset = SYNTHIA(str(tmp_path / below))
    assert [dataset.name(i) for i in range(3)] == sorted(made)
    np.testing.assert_array_equal(dataset.load_label(1), made["0000001"][1])


def test_the_first_channel_is_the_class(tmp_path, made):
    path = tmp_path / "RAND_CITYSCAPES/GT/LABELS/0000000.png"
    save_rgb16(np.full((4, 5), 3), np.full((4, 5), 9), path)
    np.testing.assert_array_equal(SYNTHIA(str(tmp_path)).load_label(0), np.full((4, 5), 3))


def test_the_rar_archive_is_explained(tmp_path):
    (tmp_path / "SYNTHIA_RAND_CITYSCAPES.rar").touch()
    with pytest.raises(DatasetError, match=r"folder RGB/ with .*a \.rar archive, which can't be read in place: unpack"):
        SYNTHIA(str(tmp_path))


def test_converted_and_broken_labels_are_found(tmp_path, made):
    labels = tmp_path / "RAND_CITYSCAPES/GT/LABELS"
    Image.fromarray(made["0000000"][1]).save(labels / "0000000.png")
    save_rgb16(np.full((19, 33), 300), np.zeros((19, 33)), labels / "0000001.png")
    whole = (labels / "0000002.png").read_bytes()
    (labels / "0000002.png").write_bytes(whole[:400])
    dataset = SYNTHIA(str(tmp_path))
    said = (
        "label is a PNG of kind grey, 8 bits; expected RGB colour of 16 bits per channel, whose first channel is the",
        "found 16-bit ids up to 300, expected class ids below 256",
        "the file is cut off",
    )
    for i, what in enumerate(said):
        with pytest.raises(DatasetError, match=f"000000{i}.png: {what}"):
            dataset.load_label(i)
    problems = scan(dataset, CITYSCAPES16, progress=False).problems
    assert all(what in problem.what for what, problem in zip(said, problems, strict=True))
    assert [problem.what[:12] for problem in dataset.check()] == ["label is a P", "the file is "]
    damaged = bytearray(whole)
    damaged[60] ^= 255
    (labels / "0000002.png").write_bytes(damaged)
    with pytest.raises(DatasetError, match=r"label can't be decoded \(damaged PNG\)"):
        dataset.load_label(2)
