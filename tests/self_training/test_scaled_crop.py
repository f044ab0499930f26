import pickle

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.transforms import TrainTransform
from lightning_uda.resize import resize_image, resize_label
from lightning_uda.self_training.mining import MinedCrop
from lightning_uda.self_training.scaled_crop import ScaledCrop


def coordinates(height, width):
    """An image whose red is the row and green the column, and a label map that is the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.full_like(rows, 200)], -1), columns


def test_crops_come_from_anywhere_at_any_scale_and_either_way_round():
    image, label = coordinates(60, 90)
    transform = ScaledCrop(crop=(20, 30), scale=(0.5, 2.0), horizontal_flip=0.5)
    spans, tops, lefts, mirrored = [], [], [], 0
    for seed in range(300):
        crop, mask = transform(image, label, seed)
        assert (crop.shape, mask.shape) == ((20, 30, 3), (20, 30))
        assert (crop.dtype, mask.dtype) == (np.uint8, np.uint8)
        assert np.abs(crop[..., 1].astype(int) - mask).max() <= 2
        first, last = int(mask[0, 0]), int(mask[0, -1])
        mirrored += first > last
        spans.append(abs(last - first) / 29)
        tops.append(int(crop[0, 0, 0]))
        lefts.append(min(first, last))
    assert min(spans) == pytest.approx(0.5, abs=0.05)
    assert max(spans) == pytest.approx(2.0, abs=0.05)
    assert min(tops) <= 2
    assert max(tops) >= 40
    assert min(lefts) <= 2
    assert max(lefts) >= 65
    assert 110 < mirrored < 190


def test_a_crop_is_a_function_of_the_seed_and_the_same_without_labels():
    image, label = coordinates(60, 90)
    transform = ScaledCrop(crop=(20, 30), horizontal_flip=0.5)
    first, _ = transform(image, label, 5)
    assert np.array_equal(first, transform(image, None, 5)[0])
    assert np.array_equal(first, pickle.loads(pickle.dumps(transform))(image, label, 5)[0])
    assert transform(image, None, 5)[1] is None
    assert not np.array_equal(first, transform(image, label, 6)[0])


def test_the_scale_grid_holds_both_ends():
    grid = ScaledCrop(crop=(8, 8), scale=(0.8, 1.2), scale_step=0.1).grid
    assert np.allclose(grid, [0.8, 0.9, 1.0, 1.1, 1.2])
    assert len(ScaledCrop(crop=(8, 8), scale=(0.5, 1.5), scale_step=0.1).grid) == 11
    image, label = coordinates(40, 80)
    drawn = {
        round(abs(int(mask[0, -1]) - int(mask[0, 0])) / 39 * 10)
        for _, mask in (ScaledCrop((20, 40), (0.5, 1.0), 0.5)(image, label, seed) for seed in range(30))
    }
    assert drawn == {10, 20}


class CropAt(ScaledCrop):
    def place(self, generator, label, size, region):
        return 8, 20


def test_cutting_first_shows_what_resizing_first_shows():
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (96, 128, 3), np.uint8), rng.integers(0, 5, (96, 128), np.uint8)
    crop, mask = CropAt((32, 48), (0.5, 0.5), horizontal_flip=0)(image, label, 0)
    whole, whole_mask = resize_image(image, (48, 64)), resize_label(label, (48, 64))
    error = np.abs(whole[4:36, 10:58].astype(int) - crop)
    assert error[1:-1, 1:-1].max() == 0  # the filter reaches one pixel over the edge
    assert np.array_equal(mask, whole_mask[4:36, 10:58])


def test_small_images_are_padded_at_the_bottom_and_on_the_right():
    image, label = coordinates(10, 12)
    crop, mask = ScaledCrop((16, 16), scale=(0.5, 0.5), horizontal_flip=0, fill=(1, 2, 3))(image, label, 0)
    assert (mask[:5, :6] != 255).all()
    assert (mask[5:] == 255).all()
    assert (mask[:, 6:] == 255).all()
    assert (crop[mask == 255] == (1, 2, 3)).all()
    assert (crop[mask != 255][:, 2] == 200).all()


def test_images_are_resized_before_they_are_scaled():
    image, label = coordinates(60, 90)
    transform = ScaledCrop(crop=(30, 45), scale=(1, 1), horizontal_flip=0, resize=(30, 45))
    crop, mask = transform(image, label, 0)
    assert np.array_equal(crop, resize_image(image, (30, 45)))
    assert np.array_equal(mask, resize_label(label, (30, 45)))
    assert (transform.resize, transform.interpolation) == ((30, 45), "bilinear")


def test_a_label_of_another_size_than_its_image_is_refused():
    image, label = np.zeros((20, 24, 3), np.uint8), np.zeros((20, 26), np.uint8)
    transforms = (ScaledCrop((8, 8)), MinedCrop(ScaledCrop((8, 8)), (0,), ()))
    for transform in transforms:
        message = rf"{type(transform).__name__}: found a label of 20 x 26 for an image of 20 x 24 .*Set `resize`"
        with pytest.raises(DatasetError, match=message):
            transform(image, label, 0)
        assert transform(image, None, 0)[1] is None
    assert ScaledCrop((8, 8), resize=(16, 16))(image, label, 0)[1].shape == (8, 8)


def test_impossible_scales_are_refused():
    with pytest.raises(ValueError, match="smallest <= largest"):
        ScaledCrop((8, 8), scale=(1.3, 0.7))
    with pytest.raises(ValueError, match=r"a step that leads from 0.5 to 1.5"):
        ScaledCrop((8, 8), scale=(0.5, 1.5), scale_step=0.3)
    for step in (0, -0.1):
        with pytest.raises(ValueError, match="scale_step: found"):
            ScaledCrop((8, 8), scale=(0.5, 1.5), scale_step=step)


class Streams:
    def __init__(self, transform: TrainTransform = TrainTransform()):
        self.transform = transform


def test_a_config_that_names_it_gets_its_defaults(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Streams, "streams")
    options = {"class_path": "ScaledCrop", "init_args": {"crop": [16, 24]}}
    config = parser.parse_object({"streams": {"transform": options}})
    transform = parser.instantiate_classes(config).streams.transform
    assert type(transform) is ScaledCrop
    assert (transform.crop, transform.scale, transform.horizontal_flip) == ((16, 24), (0.7, 1.3), 0.0)
