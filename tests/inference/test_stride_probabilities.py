import pytest
import torch

from lightning_uda.inference import StrideProbabilities
from tests.inference.networks import Recorder, images, strided


def ramp(height, width):
    """Brighter to the right, so that a mirrored image is told from an upright one."""
    return torch.linspace(0, 1, width).expand(1, 3, height, width)


@torch.no_grad()
def test_agrees_with_the_published_program(golden):
    arrays = golden("cbst_inference")
    height, width = arrays["valid_hw"].tolist()

    def network(padded):
        mirrored = padded[0, 0, 0, 0] > padded[0, 0, 0, -1]
        return arrays["prob_stride8_flipped_input" if mirrored else "prob_stride8"].log().unsqueeze(0)

    full = StrideProbabilities()(network, ramp(height, width), tuple(arrays["out_hw"].tolist()))
    torch.testing.assert_close(full[0], arrays["prob_full_bicubic"], rtol=0, atol=2e-6)
    assert full.min() < 0
    at_stride = StrideProbabilities(multiple=1)(network, ramp(8, 15), (8, 15))
    torch.testing.assert_close(at_stride[0], arrays["prob_averaged"], rtol=0, atol=2e-6)


@torch.no_grad()
def test_padding_is_at_the_bottom_and_on_the_right_in_the_fill_colour():
    network, image = Recorder(strided()), images(1, 3, 13, 21)
    scores = StrideProbabilities(flip=True, multiple=8, fill=(0.1, 0.2, 0.3))(network, image, (13, 21))
    first, second = network.inputs
    assert first.shape == (1, 3, 16, 24)
    assert torch.equal(first[..., :13, :21], image)
    assert torch.equal(first[0, :, 13:, :], torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).expand(3, 3, 24))
    assert torch.equal(first[0, :, :, 21:], torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).expand(3, 16, 3))
    assert torch.equal(second, first.flip(-1))
    assert scores.shape == (1, 5, 13, 21)


@torch.no_grad()
def test_without_mirroring_there_is_one_pass():
    network, image = Recorder(strided()), images(1, 3, 16, 24)
    StrideProbabilities(flip=False)(network, image, (16, 24))
    assert torch.equal(torch.stack(network.inputs), image.unsqueeze(0))


def test_a_multiple_below_one_is_refused():
    with pytest.raises(ValueError, match="multiple: found 0"):
        StrideProbabilities(multiple=0)
