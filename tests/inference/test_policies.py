import pytest
import torch
import torch.nn.functional as F

from lightning_uda.inference import WholeImage
from tests.inference.networks import Recorder, images, strided


@torch.no_grad()
@pytest.mark.parametrize("align_corners", [True, False])
def test_logits_are_upsampled_with_or_without_aligned_corners(align_corners):
    network, image = strided(), images(2, 3, 16, 24)
    scores = WholeImage(align_corners=align_corners)(network, image, (32, 50))
    expected = F.interpolate(network(image), (32, 50), mode="bilinear", align_corners=align_corners)
    assert torch.equal(scores, expected)


@torch.no_grad()
def test_the_image_is_resized_before_the_pass():
    network, image = Recorder(strided()), images(1, 3, 20, 30)
    scores = WholeImage(resize=(8, 12))(network, image, (20, 30))
    assert network.shapes == [(1, 3, 8, 12)]
    resized = F.interpolate(image, (8, 12), mode="bilinear", antialias=True)
    assert torch.equal(network.inputs[0], resized)
    assert scores.shape == (1, 5, 20, 30)


@torch.no_grad()
def test_several_sizes_take_one_pass():
    network, image = Recorder(strided()), images(1, 3, 16, 24)
    scores = WholeImage().scores(network, image)
    sizes = [(16, 24), (8, 12), (40, 31)]
    for size in sizes:
        assert torch.equal(scores(size), WholeImage()(network.network, image, size))
    assert len(network.inputs) == 1
