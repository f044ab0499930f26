"""Pixels near the borders of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_uda.label_spaces import IGNORE_INDEX


def near_borders(mask: Tensor, distance: int) -> Tensor:
    """Which pixels have a pixel of another class near them.

    Distance is Chebyshev's: a pixel is near a border if the square of 2 * `distance` + 1 pixels a side around it holds
    a class other than its own, so `distance` pixels on either side of a straight border are. Void pixels aren't near
    borders and make none; across a strip of void that is narrower than `distance`, classes are near each other.

    Args:
        mask: Labels of any integer type, (N, H, W), in 0 .. 254; 255 is void.
        distance: Pixels, 1 or more; may go beyond the image.

    Returns:
        bool (N, H, W), on the same device.
    """
    valid = mask != IGNORE_INDEX
    labels = mask.float()  # pooling takes no integers; up to 2^24 they are exact
    ends = torch.stack([labels, -labels], dim=1).masked_fill(~valid.unsqueeze(1), -torch.inf)
    for kernel, padding in (((2 * distance + 1, 1), (distance, 0)), ((1, 2 * distance + 1), (0, distance))):
        ends = F.max_pool2d(ends, kernel, stride=1, padding=padding)
    largest, smallest = ends[:, 0], -ends[:, 1]
    return valid & (largest != smallest)
