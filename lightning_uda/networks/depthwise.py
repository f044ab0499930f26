"""Depthwise convolutions whose gradients are computed by forward convolutions, which a CPU does much faster."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

WIDEST_PADDING = 7  # beyond it the CPU has no fast kernel


class DepthwiseGradients(Function):
    """A depthwise convolution that keeps the size; gradients of images and weights are depthwise convolutions too.

    d loss / d image is the gradient convolved with the mirrored weights. d loss / d weight is the image convolved with
    the gradient as its kernel, one for each image and channel, at the steps of the dilation.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, dilation: int) -> Tensor:
        """`image` (B, C, H, W), `weight` (C, 1, K, K) with odd K -> (B, C, H, W)."""
        ctx.save_for_backward(image, weight)
        ctx.dilation = dilation
        return convolve(image, weight, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of the image and the weight, where they are asked for."""
        (gradient,) = gradients
        image, weight = ctx.saved_tensors
        of_image = convolve(gradient, weight.flip(2, 3), ctx.dilation) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            batch, channels, height, width = image.shape
            of_weight = F.conv2d(
                image.reshape(1, batch * channels, height, width),
                gradient.reshape(batch * channels, 1, height, width),
                padding=ctx.dilation * (weight.shape[-1] // 2),
                stride=ctx.dilation,
                groups=batch * channels,
            )
            of_weight = of_weight.view(batch, *weight.shape).sum(0)
        return of_image, of_weight, None


def convolve(image: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Depthwise convolution of `image` (B, C, H, W) with `weight` (C, 1, K, K), padded to keep the size."""
    return F.conv2d(image, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation, groups=image.shape[1])


def depthwise(image: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """As `convolve`, with gradients by forward convolutions. Wide ones are done on the grids of their dilation.

    Args:
        image: Features, (B, C, H, W).
        weight: One odd, square kernel per channel, (C, 1, K, K).
        dilation: Steps between the pixels that a kernel sees.
    """
    if dilation * (weight.shape[-1] // 2) <= WIDEST_PADDING:
        return _with_gradients(image, weight, dilation)
    batch, _, height, width = image.shape
    padded = F.pad(image, (0, -width % dilation, 0, -height % dilation))
    rows, columns = (side // dilation for side in padded.shape[-2:])
    grids = padded.view(batch, -1, rows, dilation, columns, dilation).permute(3, 5, 0, 1, 2, 4).flatten(0, 2)
    result = _with_gradients(grids, weight, 1).view(dilation, dilation, batch, -1, rows, columns)
    return result.permute(2, 3, 4, 0, 5, 1).reshape(padded.shape)[..., :height, :width]


def _with_gradients(image: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return cast("Tensor", DepthwiseGradients.apply(image, weight, dilation))


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` that keeps the size and trains faster on a CPU, in float32 or float64.

    Its values are those of `nn.Conv2d`, its gradients differ by rounding. In other types, under autocast and on other
    devices it is `nn.Conv2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input` (B, C, H, W) -> (B, C, H, W)."""
        plain = input.device.type == "cpu" and input.dtype in (torch.float32, torch.float64)
        if not plain or input.dim() != 4 or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        result = depthwise(input, self.weight, self.dilation[0])
        return result if self.bias is None else result + self.bias[:, None, None]


def hasten_depthwise(network: nn.Module) -> int:
    """Makes the convolutions of a network `DepthwiseConv2d` whose gradients are slow on a CPU; returns how many.

    They are depthwise, of stride 1 and keep the size, and their kernels are 5 x 5 or larger, or have dilations: the
    gradients of others are fast as they are. Kernels of 3 x 3 with dilations beyond 7 stay too, which gain nothing.
    Names of weights and checkpoints stay as they are.
    """
    slow = [module for module in network.modules() if type(module) is nn.Conv2d and _is_slow(module)]
    for convolution in slow:
        convolution.__class__ = DepthwiseConv2d
    return len(slow)


def _is_slow(convolution: nn.Conv2d) -> bool:
    (kernel, width), (dilation, other) = convolution.kernel_size, convolution.dilation
    padding = dilation * (kernel // 2)
    return (
        convolution.groups == convolution.in_channels == convolution.out_channels > 1
        and kernel == width
        and kernel % 2 == 1
        and dilation == other
        and convolution.stride == (1, 1)
        and convolution.padding == (padding, padding)
        and convolution.padding_mode == "zeros"
        and (kernel > 3 or 1 < dilation <= WIDEST_PADDING)
    )
