import numpy as np
import pytest

from lightning_uda.data.check import scan
from lightning_uda.datasets import Cityscapes, DatasetError
from lightning_uda.label_spaces import CITYSCAPES, CITYSCAPES16
from tests.fixtures.official_layouts import make_cityscapes


@pytest.fixture
def made(tmp_path):
    return make_cityscapes(tmp_path)


def test_ids_equal_the_references(golden):
    for space, keys in (
        (CITYSCAPES, {"dacs_label_maps": "gta_or_cityscapes_id_to_train19", "cbst_label_luts": "cityscapes_id_to_19"}),
        (CITYSCAPES16, {"dacs_label_maps": "cityscapes_id_to_train16", "cbst_label_luts": "cityscapes_id_to_16"}),
    ):
        for name, key in keys.items():
            np.testing.assert_array_equal(space.lookup_table(Cityscapes.class_ids), golden(name).numpy(key))


@pytest.mark.parametrize(("split", "labelled"), [("train", True), ("val", True), ("val", False), ("test", False)])
def test_splits(tmp_path, made, split, labelled):
    dataset = Cityscapes(str(tmp_path), split, labelled)
    assert [dataset.name(i) for i in range(len(dataset))] == sorted(made[split])
    assert dataset.has_labels == labelled
    np.testing.assert_array_equal(dataset.load_image(0), made[split][dataset.name(0)][0])


def test_labels_are_the_label_ids_with_void_for_minus_one(tmp_path, made):
    dataset = Cityscapes(str(tmp_path), "val")
    label = dataset.load_label(0)
    assert set(np.unique(label)) == {*range(34), 255}
    np.testing.assert_array_equal(label, made["val"]["lindau_000000_000019"][1])
    report = scan(dataset, CITYSCAPES, progress=False)
    assert report.problems == []
    assert [warning.what[:14] for warning in report.warnings] == ["found 1 images"]


def test_a_list_may_name_images_of_any_split(tmp_path, made):
    (tmp_path / "two.txt").write_text(
        "lindau_000000_000019\nleftImg8bit/train/bremen/bremen_000000_000019_leftImg8bit.png"
    )
    dataset = Cityscapes(str(tmp_path), "two.txt")
    assert [dataset.name(i) for i in range(2)] == ["lindau_000000_000019", "bremen_000000_000019"]
    np.testing.assert_array_equal(dataset.load_label(0), made["val"]["lindau_000000_000019"][1])


def test_labels_of_the_test_split_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"test split aren't public .* `labelled: false`"):
        Cityscapes(str(tmp_path), "test")


def test_missing_label_archive_is_named(tmp_path, made):
    (tmp_path / "gtFine").rename(tmp_path / "gtCoarse")
    with pytest.raises(
        DatasetError,
        match=r"no Cityscapes labels found; expected the folder gtFine/ with files such as "
        r"val/<city>/<city>_000000_000019_gtFine_labelIds\.png.*gtFine_trainvaltest\.zip"
        r".*holds: gtCoarse/, leftImg8bit/",
    ):
        Cityscapes(str(tmp_path), "val")
