import pickle

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_uda.data.transforms import TrainTransform
from lightning_uda.resize import resize_image, resize_label
from lightning_uda.self_training.mining import (
    MinedCrop,
    RareClassMining,
    ScaledCrop,
    admissible_centres,
    clamped_offset,
    mining_candidates,
    mining_classes,
)


def coordinates(height, width):
    """An image whose red is the row and green the column, and a label map that is the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, np.full_like(rows, 200)], -1), columns


def ids(row):
    return tuple(int(value) for value in row if value >= 0)


def test_crops_come_from_anywhere_at_any_scale_and_either_way_round():
    image, label = coordinates(60, 90)
    transform = ScaledCrop(crop=(20, 30), scale=(0.5, 2.0))
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
    transform = ScaledCrop(crop=(20, 30))
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
    crop, mask = CropAt((32, 48), (0.5, 0.5), mirror=0)(image, label, 0)
    whole, whole_mask = resize_image(image, (48, 64)), resize_label(label, (48, 64))
    error = np.abs(whole[4:36, 10:58].astype(int) - crop)
    assert error[1:-1, 1:-1].max() == 0  # the filter reaches one pixel over the edge
    assert np.array_equal(mask, whole_mask[4:36, 10:58])


def test_small_images_are_padded_at_the_bottom_and_on_the_right():
    image, label = coordinates(10, 12)
    crop, mask = ScaledCrop((16, 16), scale=(0.5, 0.5), mirror=0, fill=(1, 2, 3))(image, label, 0)
    assert (mask[:5, :6] != 255).all()
    assert (mask[5:] == 255).all()
    assert (mask[:, 6:] == 255).all()
    assert (crop[mask == 255] == (1, 2, 3)).all()
    assert (crop[mask != 255][:, 2] == 200).all()


def test_images_are_resized_before_they_are_scaled():
    image, label = coordinates(60, 90)
    transform = ScaledCrop(crop=(30, 45), scale=(1, 1), mirror=0, resize=(30, 45))
    crop, mask = transform(image, label, 0)
    assert np.array_equal(crop, resize_image(image, (30, 45)))
    assert np.array_equal(mask, resize_label(label, (30, 45)))
    assert (transform.resize, transform.interpolation) == ((30, 45), "bilinear")


def test_rare_classes_are_the_reference(golden):
    g = golden("cbst_thresholds")
    counts, share = g["pixel_count"], g["mine_share"].item()
    expected = tuple(g["mine_ids_below_share"].tolist()), tuple(g["rare3_ids"].tolist())
    assert mining_classes(counts, share) == mining_classes(counts.numpy(), share) == expected
    mining = RareClassMining(share=share, num_rarest=2, fallback=False)
    assert mining.classes(counts) == (expected[0], ())
    assert mining_classes(torch.zeros(4, dtype=torch.int64)) == ((), (0, 1, 2))


def test_candidates_and_admissible_centres_are_the_reference(golden):
    g = golden("cbst_mining")
    label = g.numpy("label")
    for i, crop in enumerate(g.numpy("crop_sizes").tolist()):
        rows, columns = admissible_centres(label.shape, (crop, crop))
        assert [*rows, *columns] == g.numpy("admissible_yyxx")[i].tolist()
        window = label[slice(*rows), slice(*columns)]
        candidates = mining_candidates(window, ids(g.numpy("priority_ids")[i]), ids(g.numpy("fallback_ids")[i]))
        assert candidates == ids(g.numpy("candidate_ids")[i])


def test_clamped_crops_are_the_reference(golden):
    g = golden("cbst_mining")
    size, crop = (tuple(g.numpy(name).tolist()) for name in ("clamp_img_hw", "clamp_crop_hw"))
    for row, column, top, left in g.numpy("clamp_seed_to_offset").tolist():
        assert clamped_offset((row, column), size, crop) == (top, left)
    assert clamped_offset((5, 5), (10, 300), (20, 20)) == (0, 0)
    assert admissible_centres((10, 300), (50, 50))[0] == (25, 0)


def scene():
    """Classes 0 and 1 everywhere, 4 in a corner, 5 in the middle."""
    label = np.zeros((48, 64), np.uint8)
    label[24:] = 1
    label[:2, :2] = 4
    label[25:27, 30:33] = 5
    image = np.repeat(label[..., None], 3, axis=2)
    return image, label


@pytest.mark.parametrize("centres", ["all", "inside"])
def test_mined_crops_hold_the_rare_class(centres):
    image, label = scene()
    base = ScaledCrop((16, 16), scale=(0.8, 1.2))
    transform = RareClassMining(probability=1, centres=centres).transform(base, priority=(5,), fallback=(4,))
    for seed in range(50):
        crop, mask = transform(image, label, seed)
        assert (mask == 5).any()
        assert (crop.shape, mask.shape) == ((16, 16, 3), (16, 16))
    middle = [transform(image, label, seed)[1][7:10, 7:10] for seed in range(50)]
    assert all((part == 5).any() for part in middle)


def test_corners_are_found_by_clamped_crops_only():
    image, label = scene()
    base = ScaledCrop((16, 16), scale=(1, 1))

    def found(centres):
        transform = RareClassMining(probability=1, centres=centres).transform(base, (4,), ())
        return [(transform(image, label, seed)[1] == 4).any() for seed in range(60)]

    assert all(found("all"))
    assert sum(found("inside")) < 10


def test_priority_comes_before_fallback_and_every_candidate_gets_its_turn():
    image, label = scene()
    base = ScaledCrop((8, 8), scale=(1, 1))

    def shares(priority, fallback):
        transform = MinedCrop(base, priority, fallback, probability=1)
        masks = [transform(image, label, seed)[1] for seed in range(100)]
        return [np.mean([(mask == c).any() for mask in masks]) for c in (4, 5)]

    assert shares((4,), (5,)) == [1, 0]
    assert shares((7,), (5,)) == [0, 1]
    both = shares((4, 5), ())
    assert sum(both) == pytest.approx(1)
    assert 0.35 < both[0] < 0.65  # by class, though 5 has more pixels


def test_the_share_of_mined_crops_is_the_probability():
    image, label = scene()
    base = ScaledCrop((8, 8), scale=(1, 1))
    transform = MinedCrop(base, (4,), (), probability=0.8)
    hits = np.mean([(transform(image, label, seed)[1] == 4).any() for seed in range(300)])
    assert 0.74 < hits < 0.87
    again = [transform(image, label, seed)[0] for seed in (3, 3)]
    assert np.array_equal(*again)


def test_without_rare_pixels_or_labels_the_crop_is_a_plain_one():
    image, label = coordinates(60, 90)
    transform = MinedCrop(ScaledCrop((20, 30), mirror=0), (250,), (251,), probability=1)
    lefts = [int(transform(image, label, seed)[1][0, 0]) for seed in range(100)]
    assert (min(lefts) < 10, max(lefts) > 40) == (True, True)
    assert transform(image, None, 0)[0].shape == (20, 30, 3)


def test_images_smaller_than_the_crop_can_be_mined():
    image, label = scene()
    for centres in ("all", "inside"):
        crop, mask = MinedCrop(ScaledCrop((64, 96), (0.5, 0.5)), (5,), (), 1, centres)(image, label, 0)
        assert (crop.shape, mask.shape) == ((64, 96, 3), (64, 96))
        assert (mask == 255).sum() == 64 * 96 - 24 * 32


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="smallest <= largest"):
        ScaledCrop((8, 8), scale=(1.3, 0.7))
    for step in (0.3, 0, -0.1):
        with pytest.raises(ValueError, match=r"a step that leads from 0.5 to 1.5"):
            ScaledCrop((8, 8), scale=(0.5, 1.5), scale_step=step)
    with pytest.raises(ValueError, match=r"found probability=1.5"):
        RareClassMining(probability=1.5)
    with pytest.raises(ValueError, match="found a TrainTransform as the stream's transform; expected a ScaledCrop"):
        RareClassMining().transform(TrainTransform(), (), ())


class Streams:
    def __init__(self, transform: TrainTransform = TrainTransform()):
        self.transform = transform


def test_a_config_that_names_it_gets_its_own_defaults(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Streams, "streams")
    options = {"class_path": "ScaledCrop", "init_args": {"crop": [16, 24]}}
    config = parser.parse_object({"streams": {"transform": options}})
    transform = parser.instantiate_classes(config).streams.transform
    assert type(transform) is ScaledCrop
    assert (transform.crop, transform.scale, transform.mirror) == ((16, 24), (0.7, 1.3), 0.5)
