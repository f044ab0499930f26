"""Several sets as one."""

from types import MappingProxyType

import numpy as np
import pytest

from lightning_uda.__main__ import main
from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.sampling import Origin, WeightedParts
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.datasets import Concat
from tests.fixtures.stages import write_config
from tests.fixtures.tiny import TinyDataset


class Other(TinyDataset):
    """The same blocks with other raw ids: 7 is Road, 5 Sky, 9 void, 1 a class of its own."""

    class_ids = MappingProxyType({7: "Road", 5: "Sky", 9: None, 1: "Tram"})
    strict_ids = True

    def load_label(self, index):
        return np.array([7, 5, 9, 1], np.uint8)[self._blocks(index)]


def test_classes_are_put_together_by_name():
    first, second = TinyDataset(2, seed=1), Other(3, seed=2)
    both = Concat([first, second])
    assert both.parts == (2, 3)
    assert [both.name(i) for i in range(5)] == ["0_tiny_1_0", "0_tiny_1_1", "1_tiny_2_0", "1_tiny_2_1", "1_tiny_2_2"]

    def names(dataset, index):
        return np.vectorize(lambda raw: dataset.class_ids.get(raw) or "")(dataset.load_label(index))

    for index in range(5):
        part, inside = (first, index) if index < 2 else (second, index - 2)
        np.testing.assert_array_equal(names(both, index), names(part, inside))
        np.testing.assert_array_equal(both.load_image(index), part.load_image(inside))
    assert "Tram" in both.class_ids.values()
    assert both.fingerprint() != Concat([second, first]).fingerprint()


def test_ids_that_a_strict_set_does_not_list_are_named():
    wrong = Other(1)
    wrong.class_ids = {7: "Road", 5: "Sky", 9: None}
    with pytest.raises(DatasetError, match=r"tiny_0_0 \(label\): found ids \[1\], which are not in the class map"):
        Concat([wrong]).load_label(0)


def test_labels_in_all_sets_or_in_none():
    with pytest.raises(ValueError, match="found labels in 1 of 2 datasets"):
        Concat([TinyDataset(), TinyDataset(has_labels=False)])
    with pytest.raises(ValueError, match="found no dataset"):
        Concat([])


def test_shares_of_the_samples_are_the_weights():
    both = Concat([TinyDataset(2, seed=1), TinyDataset(30, seed=2)])
    stream = WeightedParts([3, 1]).stream(Origin("target", both, None, TrainTransform(), 0), None)
    drawn = np.array([stream.index(position) for position in range(4000)])
    assert abs((drawn < 2).mean() - 0.75) < 0.03  # four standard deviations
    assert set(drawn.tolist()) == set(range(32))
    assert [stream.index(position) for position in range(5)] == drawn[:5].tolist()
    with pytest.raises(ValueError, match=r"found 3 weights, but data.target is of 2 sets"):
        WeightedParts([1, 1, 1]).stream(Origin("target", both, None, TrainTransform(), 0), None)
    for weights in ([-1, 2], [0, 0], [float("nan"), 1], []):
        with pytest.raises(ValueError, match=r"WeightedParts.weights: found"):
            WeightedParts(weights)


def test_two_sources_and_two_targets_train_by_a_config(tmp_path):
    tiny = "{class_path: tests.fixtures.tiny.TinyDataset, init_args: {length: 4, seed: %d}}"
    options = []
    for name in ("source", "target"):
        options += [f"--data.{name}", "Concat", f"--data.{name}.datasets", f"[{tiny % 1}, {tiny % 5}]"]
        options += [f"--data.{name}_sampling", "WeightedParts", f"--data.{name}_sampling.weights", "[1, 3]"]
    main(["fit", "--config", write_config(tmp_path, "DACS"), *options])
    assert (tmp_path / "DACS/version_0/checkpoints/step=4.ckpt").is_file()
