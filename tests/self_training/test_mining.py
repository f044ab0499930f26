import numpy as np
import pytest
import torch

from lightning_uda.data.transforms import TrainTransform
from lightning_uda.self_training.mining import (
    MinedCrop,
    RareClassMining,
    admissible_centres,
    clamped_offset,
    mining_candidates,
    mining_classes,
)
from lightning_uda.self_training.scaled_crop import ScaledCrop
from tests.self_training.test_scaled_crop import coordinates


def ids(row):
    return tuple(int(value) for value in row if value >= 0)


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
    transform = MinedCrop(ScaledCrop((20, 30), horizontal_flip=0), (250,), (251,), probability=1)
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
    with pytest.raises(ValueError, match=r"probability: found 1.5"):
        RareClassMining(probability=1.5)
    with pytest.raises(ValueError, match="found a TrainTransform as the stream's transform; expected a ScaledCrop"):
        RareClassMining().transform(TrainTransform(), (), ())
