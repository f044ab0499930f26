import numpy as np
import pytest

from lightning_uda.data.check import scan
from lightning_uda.datasets import NTHU, DatasetError
from lightning_uda.datasets.nthu import deal_folds
from lightning_uda.label_spaces import CITYSCAPES, NTHU13
from tests.fixtures.official_layouts import make_nthu


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("nthu")
    make_nthu(root)
    return str(root)


def names(dataset):
    return [dataset.name(i) for i in range(len(dataset))]


def test_cities_are_kept_apart(root):
    rome, rio = NTHU(root, "rome"), NTHU(root, "rio")
    assert names(rome) == names(rio)
    assert not np.array_equal(rome.load_label(0), rio.load_label(0))
    assert rome.fingerprint() != rio.fingerprint()
    with pytest.raises(DatasetError, match=r"no NTHU images found; expected the folder Tokyo/Images/Test/"):
        NTHU(root, "tokyo")


def test_labels_fit_13_and_19_classes(root):
    dataset = NTHU(root, "rome")
    table = NTHU13.lookup_table(dataset.class_ids)
    assert table[[7, 8, 11, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33]].tolist() == list(range(13))
    assert (table != 255).sum() == 13
    assert CITYSCAPES.lookup_table(dataset.class_ids)[33] == 18
    report = scan(dataset, NTHU13, progress=False)
    assert report.problems == []
    assert report.class_images.tolist() == [20] * 13
    assert [warning.what[:15] for warning in report.warnings] == ["found 20 images"]


def test_training_images_have_no_labels(root):
    assert names(NTHU(root, "rome", "train", labelled=False)) == ["pano_10000_0_0", "pano_10001_0_0"]
    with pytest.raises(DatasetError, match=r"`split: train` has no labels"):
        NTHU(root, "rome", "train")


def test_ten_folds_score_every_image_once_and_adapt_to_the_others(root):
    scored = []
    for fold in range(10):
        score = NTHU(root, "rio", "score", fold=fold)
        adapt = NTHU(root, "rio", "adapt", labelled=False, fold=fold)
        assert (len(score), len(adapt)) == (2, 18)
        assert sorted(names(score) + names(adapt)) == names(NTHU(root, "rio"))
        every = dict(zip(names(NTHU(root, "rio")), range(20), strict=True))
        np.testing.assert_array_equal(score.load_label(1), NTHU(root, "rio").load_label(every[score.name(1)]))
        np.testing.assert_array_equal(adapt.load_image(3), NTHU(root, "rio").load_image(every[adapt.name(3)]))
        scored += names(score)
    assert sorted(scored) == names(NTHU(root, "rio"))


def test_a_missing_label_is_a_problem_of_its_own_fold_only(tmp_path):
    make_nthu(tmp_path, cities=("Rome",))
    whole = NTHU(str(tmp_path), "rome")
    lost = NTHU(str(tmp_path), "rome", "score", fold=2).name(0)
    (tmp_path / f"NTHU_Datasets/Rome/Labels/Test/{lost}_eval.png").unlink()
    for fold in range(10):
        problems = NTHU(str(tmp_path), "rome", "score", fold=fold).check()
        assert [problem.what.split(" Expected")[0] for problem in problems] == (
            [f"1 of 2 NTHU images have no label in Rome/Labels/Test/: {lost}."] if fold == 2 else []
        )
    assert len(NTHU(str(tmp_path), "rome")) == len(whole)


def test_folds_are_of_the_protocols_size_and_depend_on_the_seed_alone(golden):
    cities = [f"pano_{i:05}" for i in range(100)]
    folds = deal_folds(cities)
    assert [len(fold) for fold in folds] == golden("cbst_nthu").numpy("fold_sizes").tolist()
    assert sorted(name for fold in folds for name in fold) == cities
    assert deal_folds(cities[::-1]) == folds
    assert deal_folds(cities, seed=1) != folds
    assert folds[0] != cities[:10]


@pytest.mark.parametrize(
    ("split", "fold", "said"),
    [
        ("score", None, "expected a fold from 0 to 9"),
        ("adapt", 10, "expected a fold from 0 to 9"),
        ("all", 3, "folds belong to"),
    ],
)
def test_folds_that_dont_fit_are_refused(root, split, fold, said):
    with pytest.raises(DatasetError, match=said):
        NTHU(root, "rome", split, fold=fold)
