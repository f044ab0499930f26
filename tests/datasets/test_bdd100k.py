import numpy as np
import pytest

from lightning_uda.datasets import BDD100K, DatasetError
from lightning_uda.label_spaces import CITYSCAPES
from tests.fixtures.official_layouts import make_bdd100k, pack


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


def test_archives_of_one_split_each_and_masks_in_another(tmp_path):
    made = make_bdd100k(tmp_path / "made")
    archives = {f"10k_images_{split}.zip": [f"bdd100k/images/10k/{split}/*"] for split in made}
    archives |= {"bdd100k_sem_seg_labels_trainval.zip": ["bdd100k/labels/**/*"]}
    pack(tmp_path / "made", tmp_path / "zipped", archives)
    for split in ("train", "val"):
        dataset = BDD100K(str(tmp_path / "zipped"), split)
        assert [dataset.name(i) for i in range(2)] == sorted(made[split])
        np.testing.assert_array_equal(dataset.load_label(0), made[split][dataset.name(0)][1])
    (tmp_path / "zipped/10k_images_val.zip").unlink()
    with pytest.raises(DatasetError, match=r"10k/val/.*or 10k_images_val\.zip"):
        BDD100K(str(tmp_path / "zipped"), "val")


@pytest.mark.parametrize("zipped", [False, True])
def test_archives_that_leave_out_the_upper_folders(tmp_path, zipped):
    made = make_bdd100k(tmp_path / "made", 2018)
    top = tmp_path / "flat"
    top.mkdir()
    seg = tmp_path / "made/bdd100k/seg"
    (seg / "images").rename(top / "10k")
    (seg / "labels").rename(top / "labels")
    (seg / "color_labels").rename(top / "color_labels")
    if zipped:
        pack(top, tmp_path / "zipped", {"images.zip": ["10k/**/*"], "seg_maps.zip": ["*labels/**/*"]})
        top = tmp_path / "zipped"
    dataset = BDD100K(str(top), "train")
    assert [dataset.name(i) for i in range(len(dataset))] == sorted(made["train"])
    for i in range(2):
        image, label = made["train"][dataset.name(i)]
        np.testing.assert_array_equal(dataset.load_image(i), image)
        np.testing.assert_array_equal(dataset.load_label(i), label)
    assert len(BDD100K(str(top), "test", labelled=False)) == 2
