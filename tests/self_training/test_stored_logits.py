import math

import pytest
import torch
from torch import nn

from lightning_uda.inference import MultiScale, SlidingWindow, StrideProbabilities, WholeImage
from lightning_uda.self_training.stored_logits import StoredLogits


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.passes = 0
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image):
        self.passes += 1
        return torch.cat([image[..., ::4, ::4], -image[..., ::4, ::4]], dim=1).half()


@pytest.mark.parametrize(
    "policy",
    [
        MultiScale(scales=(0.5, 1.0)),
        SlidingWindow((12, 16), (4, 8), windows_per_batch=2),
        StrideProbabilities(),
        WholeImage((8, 8)),
    ],
    ids=lambda policy: type(policy).__name__,
)
@pytest.mark.parametrize("bits", [32, 16])
def test_scores_are_had_again_without_network_and_pixels(tmp_path, policy, bits):
    network = Counted()
    stored = StoredLogits(network, tmp_path, 3, bits)
    images = torch.rand(3, 1, 3, 16, 24)
    first = []
    for number, image in enumerate(images):
        stored.show(number)
        first.append(policy(stored, image, (16, 24)))
    passes = network.passes
    for number in (2, 0, 1, 0):
        stored.show(number)
        again = policy(stored, torch.empty(1, 3, 16, 24, device="meta"), (16, 24))
        assert torch.equal(first[number], again)
        assert again.dtype == torch.float32
    assert network.passes == passes
    assert stored._file.seek(0, 2) == bits // 8 * 3 * sum(math.prod(shape) for _, shape in stored._passes[0])
    torch.testing.assert_close(first[1], policy(network, images[1], (16, 24)), rtol=1e-2, atol=1e-3)
    assert not list(tmp_path.iterdir())
    stored.close()
