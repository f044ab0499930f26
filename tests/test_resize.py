import numpy as np
import pytest
import torch
from PIL import Image

from lightning_uda.resize import resize_labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_rows_and_columns_are_the_ones_that_pillow_takes(dtype):
    generator = np.random.default_rng(0)
    for _ in range(60):
        have, want = generator.integers(1, 90, 2), generator.integers(1, 90, 2)
        labels = generator.integers(0, 256, (2, *have), dtype=np.uint8)
        resized = resize_labels(torch.from_numpy(labels).to(dtype), (int(want[0]), int(want[1])))
        assert resized.dtype == dtype
        for one, other in zip(resized, labels, strict=True):
            expected = Image.fromarray(other).resize((int(want[1]), int(want[0])), Image.Resampling.NEAREST)
            np.testing.assert_array_equal(one.numpy(), np.asarray(expected))


@pytest.mark.parametrize(("have", "want"), [((1024, 2048), (512, 1024)), ((1052, 1914), (512, 1024))])
def test_at_the_sizes_of_the_benchmarks(have, want):
    labels = np.random.default_rng(1).integers(0, 34, have, dtype=np.uint8)
    expected = Image.fromarray(labels).resize(want[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_labels(torch.from_numpy(labels)[None], want)[0].numpy(), np.asarray(expected))


def test_labels_that_have_the_size_are_left_alone():
    mask = torch.arange(12).view(1, 3, 4)
    assert resize_labels(mask, (3, 4)) is mask
