"""Where in an image each class is found: the spatial prior of CBST-SP (section 3.4 of the paper).

The paper gives a kernel of 70 x 70 and normalisation to a sum of 1, no more; the rest is our reading. Scores are
multiplied by the prior, of which all values are of the order of 1 / (H W): keep such products in float32, and take
their thresholds from `RadixSelect`. A factor that all classes share changes no label; one of a single class does.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Normalization = Literal["pixels", "classes"]


def count_positions(counts: Tensor, label: Tensor) -> None:
    """Adds a label map to counts, in place.

    Args:
        counts: int32 (C + 1, H, W); the last plane is that of void.
        label: uint8 (H, W) of train ids; whatever is not in 0..C-1 is void.
    """
    planes = label.reshape(-1).long().clamp_(max=len(counts) - 1)
    cells = planes.mul_(label.numel()).add_(torch.arange(label.numel(), device=label.device))
    counts.view(-1)[cells] += 1  # each cell once, so nothing is lost


def smooth(frequency: Tensor, radius: int = 35, sigma: float = 35 / 3) -> Tensor:
    """Gaussian of 2 radius + 1 taps along rows and columns, the border replicated.

    Zeros beyond the border would halve the prior exactly where sky and road are. The paper's 70 x 70 comes without
    a sigma; by default its edge is at three sigma.

    Args:
        frequency: float (C, H, W) on the CPU.
        radius: Pixels to each side.
        sigma: In pixels.

    Returns:
        float32 (C, H, W).

    Raises:
        ValueError: If radius or sigma can't be.
    """
    if radius < 0 or sigma <= 0:
        raise ValueError(f"Found radius {radius} and sigma {sigma}; expected 0 or more, and more than 0 pixels.")
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    smoothed = torch.empty(frequency.shape, dtype=torch.float32)
    for plane, target in zip(frequency, smoothed, strict=True):
        exact = plane.double().numpy()
        target.numpy()[:] = cv2.sepFilter2D(exact, cv2.CV_64F, taps, taps, borderType=cv2.BORDER_REPLICATE)
    return smoothed


def normalise(prior: Tensor, over: Normalization = "pixels") -> Tensor:
    """Makes a prior sum to 1; where there is nothing, it stays 0.

    Args:
        prior: float (C, H, W), not negative.
        over: "pixels": each class over the image, which keeps the layout and drops how frequent the class is.
            "classes": each pixel over the classes, the other reading of the paper's sum.

    Returns:
        float32 (C, H, W).
    """
    total = prior.sum(dim=(1, 2) if over == "pixels" else 0, keepdim=True, dtype=torch.float64)
    return (prior / total.where(total > 0, 1).to(prior.dtype)).float()


def prior_from_counts(
    counts: Tensor,
    num_maps: int,
    radius: int = 35,
    sigma: float = 35 / 3,
    over: Normalization = "pixels",
) -> Tensor:
    """The prior q from counts: frequency, smoothed, normalised.

    Args:
        counts: int (C, H, W): in how many label maps each pixel has each class.
        num_maps: Number of label maps, S.
        radius: As in `smooth`.
        sigma: As in `smooth`.
        over: As in `normalise`.

    Returns:
        float32 (C, H, W); 0 everywhere for a class that no map holds, which is then never selected.
    """
    return normalise(smooth(counts / num_maps, radius, sigma), over)


def resize_prior(prior: Tensor, size: tuple[int, int], over: Normalization = "pixels") -> Tensor:
    """Bilinear resizing, after which the prior is made to sum to 1 again.

    Args:
        prior: float32 (C, h, w).
        size: Height and width wanted.
        over: As in `normalise`; the value that the prior was made with.

    Returns:
        float32 (C, *size), not negative.
    """
    if tuple(prior.shape[-2:]) == tuple(size):
        return prior
    resized = F.interpolate(prior.unsqueeze(0), size=size, mode="bilinear", align_corners=False)
    return normalise(resized.squeeze(0).clamp(min=0), over)
