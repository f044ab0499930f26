import numpy as np
import pytest

from lightning_uda.data.datasets import BDD100K, DatasetError
from lightning_uda.data.label_spaces import CITYSCAPES
from tests.fixtures.official_layouts import make_bdd100k


@pytest.mark.parametrize("layout", [2018, 2020])
@pytest.mark.parametrize("below", ["", "bdd100k"])
def test_splits_of_both_layouts(tmp_path, layout, below):
    made = make_bdd100k(tmp_path, layout)
    for split, labelled in (("train", True), ("val", True), ("test", False)):
        dataset = BDD100K(str(tmp_path / below), split, labelled)
        assert [dataset.name(i) for i in range(len(dataset))] == sorted(made[split])
        assert dataset.check() == []
        if labelled:
            np.testing.assert_array_equal(dataset.load_label(1), made[split][dataset.name(1)][1])


def test_masks_hold_train_ids():
    np.testing.assert_array_equal(CITYSCAPES.lookup_table(BDD100K.class_ids), [*range(19), *[255] * 237])


def test_labels_of_the_test_split_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"BDD100K's test split aren't public.*`labelled: false`"):
        BDD100K(str(tmp_path), "test")


def test_a_split_without_its_masks_is_named(tmp_path):
    make_bdd100k(tmp_path)
    (tmp_path / "bdd100k/labels/sem_seg/masks/val").rename(tmp_path / "bdd100k/labels/sem_seg/masks/elsewhere")
    with pytest.raises(DatasetError, match=r"sem_seg/masks/val/.*bdd100k_sem_seg_labels_trainval\.zip"):
        BDD100K(str(tmp_path), "val")
