import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from lightning_uda.networks.depthwise import DepthwiseConv2d, convolve, depthwise, hasten_depthwise


def gradients_of(form, image, weight, dilation):
    image, weight = (part.detach().requires_grad_() for part in (image, weight))
    result = form(image, weight, dilation)
    result.square().sum().backward()
    return result, image.grad, weight.grad


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (16, 12)])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 8])
def test_values_and_gradients_are_those_of_pytorch(kernel, dilation, size):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 4, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 1, kernel, kernel, generator=generator, dtype=torch.float64)
    expected, found = (gradients_of(form, image, weight, dilation) for form in (convolve, depthwise))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients_have_gradients():
    image = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    for dilation in (1, 4):
        call = lambda *inputs, dilation=dilation: depthwise(*inputs, dilation)  # noqa: E731
        assert torch.autograd.gradcheck(call, (image, weight))
        assert torch.autograd.gradgradcheck(call, (image, weight))


def test_only_what_is_slow_and_keeps_the_size_is_changed():
    kept = [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),  # fast as it is
        nn.Conv2d(4, 4, 3, padding=12, dilation=12, groups=4),
        nn.Conv2d(4, 4, 5, padding=2, groups=2),
        nn.Conv2d(4, 8, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 5, padding=2, stride=2, groups=4),
        nn.Conv2d(4, 4, 5, groups=4),
        nn.Conv2d(4, 4, 4, padding=2, groups=4),
        nn.Conv2d(4, 4, (5, 3), padding=(2, 1), groups=4),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, padding_mode="reflect"),
        nn.Conv2d(1, 1, 5, padding=2),
    ]
    changed = [
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 4, 5, padding=8, dilation=4, groups=4),
    ]
    network = nn.ModuleList(kept + changed)
    assert hasten_depthwise(network) == len(changed)
    assert [type(module) for module in network] == [nn.Conv2d] * len(kept) + [DepthwiseConv2d] * len(changed)
    assert hasten_depthwise(network) == 0
    image = torch.randn(2, 4, 9, 11)
    for convolution in changed:
        plain = F.conv2d(
            image, convolution.weight, convolution.bias, 1, convolution.padding, convolution.dilation, groups=4
        )
        torch.testing.assert_close(convolution(image), plain)
        torch.testing.assert_close(convolution(image[0]), plain[0], rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert convolution(image).dtype == torch.bfloat16
        assert copy.deepcopy(convolution).bfloat16()(image.bfloat16()).dtype == torch.bfloat16


def test_a_whole_network_trains_to_the_same():
    torch.manual_seed(0)
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=8, out_indices=(2,)).double()
    fast = copy.deepcopy(plain)
    assert hasten_depthwise(fast) > 0
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    for network in (plain, fast, copied := copy.deepcopy(fast)):
        network(images)[0].square().sum().backward()
    assert any(isinstance(module, DepthwiseConv2d) for module in copied.modules())
    copied.load_state_dict(plain.state_dict())
    for one, other, third in zip(plain.parameters(), fast.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(one.grad, third.grad, rtol=1e-8, atol=1e-10)
