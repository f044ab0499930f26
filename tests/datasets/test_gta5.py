import numpy as np
import pytest

from lightning_uda.data.check import require_usable, scan
from lightning_uda.data.streams import LabelReader, Stream
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.datasets import GTA5
from lightning_uda.label_spaces import CITYSCAPES, CITYSCAPES16
from tests.fixtures.official_layouts import make_gta5

GOLDEN = "dacs_label_maps"


@pytest.fixture
def root(tmp_path):
    make_gta5(tmp_path)
    return str(tmp_path)


def test_ids_equal_the_reference(golden):
    np.testing.assert_array_equal(
        CITYSCAPES.lookup_table(GTA5.class_ids), golden(GOLDEN).numpy("gta_or_cityscapes_id_to_train19")
    )
    np.testing.assert_array_equal(
        CITYSCAPES16.lookup_table(GTA5.class_ids), golden(GOLDEN).numpy("cityscapes_id_to_train16")
    )


def test_pairs_of_different_size_are_listed_but_stop_nothing(root):
    dataset = GTA5(root)
    assert dataset.load_image(2).shape[:2] != dataset.load_label(2).shape
    report = scan(dataset, CITYSCAPES, progress=False)
    assert report.problems == []
    (warning,) = [warning for warning in report.warnings if warning.where == dataset.label_file(2)]
    assert warning.what == (
        "label is 24 x 39 (height x width), its image 22 x 37; this dataset is known for it: set `resize` in the "
        "transform, which brings both to one size."
    )
    require_usable({"source": dataset}, {"source": 3})
    reader = LabelReader(dataset, CITYSCAPES.lookup_table(dataset.class_ids))
    stream = Stream("source", dataset, TrainTransform((20, 36), "bicubic", (8, 8)), 0, reader)
    for position in range(3):
        sample = stream.sample(position)
        assert (sample["image"].shape, sample["mask"].shape) == ((3, 8, 8), (8, 8))


def test_classes_are_counted_from_palette_indices(root, tmp_path):
    labels = [label for _, label in make_gta5(tmp_path / "again").values()]
    report = scan(GTA5(root), CITYSCAPES, progress=False)
    assert report.class_pixels[0] == sum(int((label == 7).sum()) for label in labels)
    assert report.class_images.tolist() == [3] * 19
    assert report.void_pixels == sum(label.size for label in labels) - report.class_pixels.sum()


def test_unknown_ids_are_warned_of(root):
    dataset = GTA5(root)
    dataset.class_ids = {i: name for i, name in GTA5.class_ids.items() if i != 34}
    report = scan(dataset, CITYSCAPES, progress=False)
    assert [warning.what for warning in report.warnings if warning.what.startswith("found ids [34] (pixels: 34: ")]
    assert report.problems == []
