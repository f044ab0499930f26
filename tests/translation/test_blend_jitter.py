from itertools import permutations

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from lightning_uda.translation import BlendJitter
from lightning_uda.translation.blend_jitter import blend_jitter

OPERATIONS = [reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue]


@pytest.mark.parametrize("order", permutations(range(4)))
def test_each_image_is_changed_as_torchvision_does_it(order):
    generator = torch.Generator().manual_seed(sum(place * 4**i for i, place in enumerate(order)))
    image = torch.rand(3, 3, 9, 8, generator=generator)
    factors = torch.rand(4, 3, generator=generator) * 1.6 + 0.2
    factors[3] = factors[3] / 4 - 0.25
    found = blend_jitter(image, factors.view(4, 3, 1, 1, 1), list(order))
    for i in range(3):
        expected = image[i]
        for operation in order:
            expected = OPERATIONS[operation](expected, factors[operation, i].item())
        torch.testing.assert_close(found[i], expected, rtol=0, atol=2e-5)


def test_factors_fill_their_range_and_orders_differ():
    grey = torch.full((400, 3, 2, 2), 0.25)
    brightened = BlendJitter(0.8, 0, 0, 0, p=1.0)(grey, torch.Generator().manual_seed(0))[:, 0, 0, 0] / 0.25
    assert brightened.min().item() == pytest.approx(0.2, abs=0.02)
    assert brightened.max().item() == pytest.approx(1.8, abs=0.02)
    assert brightened.mean().item() == pytest.approx(1, abs=0.1)
    image = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(BlendJitter(0, 0, 0, 0, p=1.0)(image, torch.Generator()), image, rtol=0, atol=1e-6)
    draws = [BlendJitter()(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert all(0 <= draw.min() and draw.max() <= 1 for draw in draws)


def test_images_are_changed_as_often_as_asked_each_by_itself():
    image = torch.rand(300, 3, 4, 4)
    changed = (BlendJitter()(image, torch.Generator().manual_seed(0)) != image).flatten(1).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("wrong", [{"brightness": -0.1}, {"hue": 0.6}, {"contrast": float("nan")}, {"p": 1.5}])
def test_widths_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"BlendJitter.*: found"):
        BlendJitter(**wrong)
