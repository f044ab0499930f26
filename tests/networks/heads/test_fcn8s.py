import pytest
import torch
from torch.nn import functional as F

from lightning_uda.networks import LevelScores


def double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def test_scores_of_all_levels_are_added_as_they_are_doubled():
    torch.manual_seed(0)
    levels = [torch.rand(2, 3, 8, 12), torch.rand(2, 5, 4, 6), torch.rand(2, 7, 2, 3)]
    classifier = LevelScores().build((3, 5, 7), (4, 8, 16), 6)

    logits = classifier(levels)

    fine, middle, coarse = classifier.weight.split([3, 5, 7], dim=1)
    scores = double(F.conv2d(levels[2], coarse)) + F.conv2d(levels[1], middle)
    expected = double(scores) + F.conv2d(levels[0], fine) + classifier.bias.view(1, -1, 1, 1)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_levels_that_are_not_halved_are_refused():
    with pytest.raises(ValueError, match=r"found levels of strides \(4, 8, 8\), expected each twice the one before"):
        LevelScores().build((3, 5, 7), (4, 8, 8), 6)
