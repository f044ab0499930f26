import torch
from torch.nn import functional as F

from lightning_uda.networks import DilatedConvolutions


def test_two_dilated_convolutions_of_the_last_level():
    torch.manual_seed(0)
    plan, features = DilatedConvolutions(channels=6, dilation=3), torch.randn(2, 4, 9, 7)
    classifier = plan.build((2, 4), (4, 8), 5)
    plan.initialize(classifier)

    logits = classifier([torch.rand(2, 2, 18, 14), features])

    first, second = (classifier.state_dict()[f"{layer}.weight"] for layer in (0, 2))
    expected = F.conv2d(F.conv2d(features, first, padding=3, dilation=3).relu(), second, padding=3, dilation=3)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert first.shape == (6, 4, 3, 3)
