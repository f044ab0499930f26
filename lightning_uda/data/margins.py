"""Borders of target images in which pseudo-labels don't count."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lightning_uda.label_spaces import IGNORE_INDEX
from lightning_uda.ranges import COUNT_OR_NONE, ranged
from lightning_uda.resize import Size

VALID = "valid"
"""Entry of a stream of images with margins: uint8 (N, H, W), 1 where pseudo-labels count, 0 in margins and padding."""


class Margins:
    """Rows and columns at the borders of whole images, where the camera's rectification and the own car lie.

    They are pixels of the image after resizing and before cropping, so a crop has those of them that it shows, and a
    mirrored one has them mirrored. DAFormer ignores 15 rows at the top and 120 at the bottom of Cityscapes at
    512 x 1024, HRDA 30 and 240 rows and 30 columns on either side of its full size.

    Args:
        top: Rows at the upper border.
        bottom: Rows at the lower one.
        left: Columns at the left border.
        right: Columns at the right one.

    Raises:
        ValueError: If a number is negative.
    """

    @ranged(top=COUNT_OR_NONE, bottom=COUNT_OR_NONE, left=COUNT_OR_NONE, right=COUNT_OR_NONE)
    def __init__(self, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> None:
        self.top = top
        self.bottom = bottom
        self.left = left
        self.right = right

    def void(self, size: Size) -> npt.NDArray[np.uint8]:
        """A label map of whole images, which goes through their geometry as any other.

        Args:
            size: Height and width of the images, after resizing.

        Returns:
            uint8 (*size): 255 (void) in the margins and 0 elsewhere.
        """
        height, width = size
        label = np.full(size, IGNORE_INDEX, np.uint8)
        label[self.top : max(0, height - self.bottom), self.left : max(0, width - self.right)] = 0
        return label

    def require_room(self, size: Size) -> None:
        """Checks that something of images is left within the margins.

        Args:
            size: Height and width of the images, after resizing.

        Raises:
            ValueError: If nothing is.
        """
        if self.top + self.bottom >= size[0] or self.left + self.right >= size[1]:
            raise ValueError(
                f"data.target_margins: found {self.top} + {self.bottom} rows and {self.left} + {self.right} columns, "
                f"which leave nothing of images of {size[0]} x {size[1]} (height x width, after `resize`). Make them "
                "smaller, or leave them out (data.target_margins null)."
            )
