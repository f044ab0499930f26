import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_uda.inference import MultiScale, SlidingWindow, WholeImage


class Shrunk(nn.Module):
    """Gives a fixed quarter-size answer and declares how it is to be upsampled."""

    def __init__(self, align_corners):
        super().__init__()
        self.align_corners = align_corners

    def forward(self, image):
        return F.avg_pool2d(image, 4)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("policy", [WholeImage, lambda **kwargs: SlidingWindow((16, 24), (16, 24), **kwargs)])
def test_logits_are_upsampled_as_the_network_declares_unless_told_otherwise(policy, declared):
    image, network = torch.rand(1, 3, 16, 24), Shrunk(declared)
    expected = [F.interpolate(network(image), (16, 24), mode="bilinear", align_corners=way) for way in (False, True)]
    assert torch.equal(policy()(network, image, (16, 24)), expected[declared])
    for told in (True, False):
        assert torch.equal(policy(align_corners=told)(network, image, (16, 24)), expected[told])


def test_multi_scale_passes_it_on():
    image, network = torch.rand(1, 3, 16, 24), Shrunk(False)
    expected = F.interpolate(network(image), (16, 24), mode="bilinear", align_corners=False).softmax(1)
    assert torch.allclose(MultiScale(scales=(1.0,), flip=False)(network, image, (16, 24)), expected)
