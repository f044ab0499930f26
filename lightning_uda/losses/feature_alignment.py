"""DSP's feature-level alignment: MMD of what lies under the paste mask, and of whole images (DSP, section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_uda.losses.mmd import mmd
from lightning_uda.networks.weights import WeightsError, read_weights
from lightning_uda.precision import full_precision


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
        weights: Soft mask, float (N, H, W).

    Returns:
        float32 (N, D): the sum over the mask divided by H * W, not by the mask's area.
    """
    adjoint = upsampling_adjoint(weights, (features.shape[-2], features.shape[-1])) / weights[0].numel()
    return (features.float().flatten(2) @ adjoint.flatten(1).unsqueeze(2)).squeeze(2)


class FeatureAlignment(nn.Module):
    """MMD between mixed source and mixed target images, of their masked and of their plain mean features.

    The features pass a fixed random projection, as in the published program; being linear it is applied to the pooled
    vectors. It is called `c1`, as there.

    Args:
        weight: lambda_feature, the weight of the sum of both.
        channels: Channels of the projection; `None` takes the features as they are (as the paper puts it). Both give
            nearly the same values.
        seed: Key of the projection.
        weights: Published checkpoint to take the projection from instead (its tensor `c1.weight`).

    Raises:
        WeightsError: If `weights` can't be read or has no such tensor.
    """

    def __init__(
        self, weight: float = 0.005, channels: int | None = 256, seed: int = 0, weights: str | None = None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.channels = channels
        self.seed = seed
        self.weights = weights
        self.c1: nn.Linear | None = None

    def set_features(self, feature_channels: int) -> None:
        """Makes the projection, N(0, 0.01^2); the method calls it once with the network's number of channels."""
        if self.channels is None:
            return
        self.c1 = nn.Linear(feature_channels, self.channels, bias=False).requires_grad_(False)
        if self.weights is None:
            self.c1.weight.normal_(std=0.01, generator=torch.Generator().manual_seed(self.seed))
            return
        found = read_weights(self.weights).get("c1.weight")
        if found is None or found.flatten(1).shape != self.c1.weight.shape:
            what = "no tensor c1.weight" if found is None else f"c1.weight of shape {tuple(found.shape)}"
            raise WeightsError(
                f"{self.weights}: found {what}, expected ({self.channels}, {feature_channels}, 1, 1). Give a "
                "checkpoint of DSP's program, or none for a random projection."
            )
        self.c1.weight.copy_(found.flatten(1))

    def forward(self, source: Tensor, target: Tensor, soft_mask: Tensor) -> Tensor:
        """lambda_feature (L_paste + L_global).

        Args:
            source: Features of the mixed source images (N, D, h, w).
            target: Features of the mixed target images (N, D, h, w).
            soft_mask: Opacity of the paste, float (N, H, W), the same for both.

        Returns:
            Scalar, float32.
        """
        with full_precision(source.device):
            paste = mmd(self._project(masked_mean(target, soft_mask)), self._project(masked_mean(source, soft_mask)))
            whole = mmd(self._project(target.float().mean(dim=(2, 3))), self._project(source.float().mean(dim=(2, 3))))
            return self.weight * (paste + whole)

    def _project(self, pooled: Tensor) -> Tensor:
        return pooled if self.c1 is None else F.linear(pooled, self.c1.weight.float())
