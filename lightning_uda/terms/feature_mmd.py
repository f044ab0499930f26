"""Alignment of features by their maximum mean discrepancy (MMD; DSP, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.networks.base import SegmentationNetwork
from lightning_uda.precision import full_precision
from lightning_uda.ranges import CHANNELS, SEED, ranged
from lightning_uda.step import Step, Term


def mmd(
    x: Tensor, y: Tensor, num_kernels: int = 5, kernel_ratio: float = 2.0, bandwidth: float | None = None
) -> Tensor:
    """Squared MMD of two samples under a sum of Gaussians: biased, the diagonal included, quadratic time.

    The kernels exp(-D / (kernel_ratio^q b)) have q = -2..2 around the bandwidth b: the mean squared distance of
    distinct vectors of the joint sample, without gradient. The value does not change when all vectors are scaled. With
    n = 2 it is about 3.1 for samples of the same distribution; with n = 1 it is a constant. Computed in float32 under
    mixed precision; 0 if all vectors coincide.

    Args:
        x: Vectors (n, D).
        y: Vectors (n, D).
        num_kernels: Number of Gaussians, odd.
        kernel_ratio: Ratio of their bandwidths.
        bandwidth: A fixed b instead.

    Returns:
        Scalar, float32.
    """
    n = len(x)
    with full_precision(x.device):
        sample = torch.cat([x, y]).float()
        distances = (sample.unsqueeze(0) - sample.unsqueeze(1)).square().sum(dim=2)
        if bandwidth is None:
            b = distances.detach().sum() / (4 * n * n - 2 * n)
        else:
            b = distances.new_tensor(bandwidth)
        exponents = torch.arange(num_kernels, dtype=torch.float32, device=distances.device) - num_kernels // 2
        widths = (b.masked_fill(b <= 0, 1.0) * kernel_ratio**exponents).view(-1, 1, 1)
        kernel = torch.exp(-distances / widths).sum(dim=0)
        signs = torch.cat([kernel.new_ones(n), kernel.new_full((n,), -1.0)])
        return (signs @ kernel @ signs) / (n * n)


def upsampling_adjoint(weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Transpose of bilinear upsampling with aligned corners: sums(up(f) * w) = sums(f * adjoint(w)).

    Args:
        weights: Weights of the pixels, float (N, H, W).
        size: Height and width (h, w) that were upsampled to (H, W).

    Returns:
        Weights of the features, float (N, h, w).
    """
    eyes = (torch.eye(n, dtype=torch.float32, device=weights.device)[None] for n in size)
    rows, columns = (
        F.interpolate(eye, size=wanted, mode="linear", align_corners=True)[0]
        for eye, wanted in zip(eyes, weights.shape[-2:], strict=True)
    )
    return rows @ weights.float() @ columns.T


def masked_mean(features: Tensor, weights: Tensor) -> Tensor:
    """Mean over all pixels of the features upsampled to the mask and multiplied by it, without upsampling them.

    Args:
        features: (N, D, h, w).
        weights: Soft mask, (N, H, W) of any type.

    Returns:
        float32 (N, D): the sum over the mask divided by H * W, not by the mask's area.
    """
    adjoint = upsampling_adjoint(weights, (features.shape[-2], features.shape[-1])) / weights[0].numel()
    return (features.float().flatten(2) @ adjoint.flatten(1).unsqueeze(2)).squeeze(2)


class FeatureMMD(Term):
    """MMD between the last feature levels of two views: of what lies under the paste, and of whole images.

    The paste is that of the first of the two views that has one; where neither has, whole images alone are compared.

    The published program projects features by a random, frozen convolution that the paper doesn't name. As pooling is
    linear, projecting the pooled vectors gives the same.

    Args:
        between: Names of the two views.
        weight: lambda_feature, the weight of the sum of both.
        channels: Channels of the projection; `None` takes the features as they are (as the paper puts it). Both give
            nearly the same values.
        seed: Key of the projection, N(0, 0.01^2).

    Raises:
        ValueError: If `between` isn't two names.
    """

    min_batch_size = 2  # the MMD of one vector and another is a constant, whose gradient grows without bound
    needs_features = True

    projection: Tensor | None

    @ranged(channels=CHANNELS, seed=SEED)
    def __init__(
        self,
        between: Sequence[str] = ("target_mixed", "source_mixed"),
        weight: float = 0.005,
        channels: int | None = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(weight)
        if isinstance(between, str) or len(between) != 2:
            raise ValueError(
                f"FeatureMMD: found between={between!r}; expected the names of two views, such as [source, mixed]."
            )
        self.between = self.differentiates = self.reads = tuple(between)
        self.channels = channels
        self.seed = seed
        self.register_buffer("projection", None, persistent=False)

    def prepare(self, network: SegmentationNetwork) -> None:
        """Draws the projection for the network's last feature level."""
        if self.channels is not None:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (self.channels, network.channels[-1])
            self.projection = torch.empty(shape, dtype=torch.float32).normal_(std=0.01, generator=generator)

    def forward(self, step: Step) -> Tensor:
        """L_paste + L_global, float32."""
        first, second = (self.seen(step, name) for name in self.between)
        opacity = second.opacity if first.opacity is None else first.opacity
        return self.discrepancy(first.features[-1], second.features[-1], opacity)

    def discrepancy(self, first: Tensor, second: Tensor, opacity: Tensor | None) -> Tensor:
        """MMD of what lies under the paste plus MMD of whole images, each image pooled to a vector.

        Args:
            first: Features (N, D, h, w).
            second: Features (N, D, h, w).
            opacity: Of the paste, (N, H, W), the same for both; `None` leaves the first part out.
        """
        with full_precision(first.device):
            x, y = (self._project(features.float().mean(dim=(2, 3))) for features in (first, second))
            whole = mmd(x, y)
            if opacity is None:
                return whole
            x, y = (self._project(masked_mean(features, opacity)) for features in (first, second))
            return mmd(x, y) + whole

    def _project(self, pooled: Tensor) -> Tensor:
        return pooled if self.projection is None else F.linear(pooled, self.projection.float())
