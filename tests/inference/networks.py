"""Networks whose outputs are known, for tests of inference policies."""

import torch
from torch import nn


class Recorder(nn.Module):
    """Runs another network and keeps the shapes of its inputs."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.inputs = []

    def forward(self, image):
        self.inputs.append(image.detach().clone())
        return self.network(image)

    @property
    def shapes(self):
        return [tuple(image.shape) for image in self.inputs]


def pointwise(num_classes=5):
    """A 1 x 1 convolution: each pixel's logits depend on that pixel alone."""
    torch.manual_seed(0)
    return nn.Conv2d(3, num_classes, 1).eval()


def strided(num_classes=5):
    """Sees a neighbourhood, at output stride 4."""
    torch.manual_seed(0)
    return nn.Conv2d(3, num_classes, 5, stride=4, padding=2).eval()


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
