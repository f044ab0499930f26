import numpy as np
import pytest

from lightning_uda.data.dataset import DatasetError
from lightning_uda.self_training.label_folder import LabelFolder, RoundRecord
from tests.fixtures.tiny import TinyDataset


def record_of(**kwargs):
    settings = {
        "round": 2, "portion": "0.25", "made_from": "key",
        "target_set": TinyDataset(3).fingerprint(labels=False), "images": 3, "pixels": 200,
        "classes": ["road", "sky", "train"], "thresholds": [0.1 + 0.2, 0.875, None],
        "predicted": [120, 80, 0], "labelled": [30, 20, 0],
        "accuracy": [75.0, None, None], "target_images": None,
    }  # fmt: skip
    return RoundRecord(**{**settings, **kwargs})


def test_labels_are_read_as_they_were_written(tmp_path):
    labels = LabelFolder(tmp_path / "round_1", TinyDataset())
    label = np.random.default_rng(0).integers(0, 256, (37, 53), np.uint8)
    labels.write(4, label)
    np.testing.assert_array_equal(labels(4), label)
    assert [path.name for path in (tmp_path / "round_1").iterdir()] == ["tiny_0_4.png"]
    with pytest.raises(DatasetError, match=r"tiny_0_5\.png"):
        labels(5)


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = record_of()
    assert RoundRecord.read(tmp_path) is None
    record.write(tmp_path)
    assert RoundRecord.read(tmp_path) == record
    assert record.threshold_tensor().tolist() == [np.float32(0.1 + 0.2), 0.875, np.inf]


def test_what_a_record_says():
    metrics = record_of().metrics()
    assert metrics["rounds/labelled"] == 25
    assert metrics["rounds/predicted_sky"] == 40
    assert metrics["rounds/accuracy_road"] == 75
    assert "rounds/threshold_train" not in metrics
    assert "rounds/accuracy_sky" not in metrics
    text = record_of().summary(num_rounds=3)
    assert text == "round 2 of 3: 25.0 % of the pixels of 3 target images have a label; none is train"
