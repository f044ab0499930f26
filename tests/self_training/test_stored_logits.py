import torch
from torch import nn

from lightning_uda.inference import MultiScale
from lightning_uda.self_training.stored_logits import StoredLogits


class Counted(nn.Module):
    passes = 0

    def forward(self, image):
        self.passes += 1
        return torch.cat([image[..., ::4, ::4], -image[..., ::4, ::4]], dim=1).half()


def test_later_looks_give_the_same_scores_without_running_the_network(tmp_path):
    network, policy = Counted(), MultiScale(scales=(0.5, 1.0))
    stored = StoredLogits(network, tmp_path)
    images = torch.rand(3, 1, 3, 16, 24)
    looks = []
    for _ in range(2):
        looks.append([])
        for number, image in enumerate(images):
            stored.show(number)
            looks[-1].append(policy(stored, image, (16, 24)))
    assert network.passes == 3 * 4  # two scales, mirrored too
    for first, second, image in zip(*looks, images, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, policy(network, image, (16, 24)), rtol=1e-2, atol=1e-3)
    assert stored(images[0]).dtype == torch.float32
