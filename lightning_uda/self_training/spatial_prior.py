"""The spatial prior of a run ("-SP" of CBST): its settings, and the prior of a data module's source."""

from __future__ import annotations

from torch import Tensor

from lightning_uda.data.datamodule import UDADataModule
from lightning_uda.data.dataset import DatasetError
from lightning_uda.ranges import BLUR, POSITIVE, SIDE, ranged
from lightning_uda.self_training.prior import Normalization
from lightning_uda.self_training.prior_counts import load_or_count_prior


class SpatialPrior:
    """Weighs scores by where the source has each class ("-SP" of CBST); see `lightning_uda.self_training.prior`.

    Args:
        size: Height and width at which source labels are counted; the usual size of the source's images.
        radius: Of the Gaussian kernel, in pixels of `size`.
        sigma: Of the Gaussian kernel, in pixels of `size`.
        over: "pixels" or "classes": over what the prior sums to 1.
    """

    @ranged(size=SIDE, radius=BLUR, sigma=POSITIVE)
    def __init__(
        self,
        size: tuple[int, int] = (1052, 1914),
        radius: int = 35,
        sigma: float = 35 / 3,
        over: Normalization = "pixels",
    ) -> None:
        self.size = size
        self.radius = radius
        self.sigma = sigma
        self.over: Normalization = over

    def of(self, data: UDADataModule) -> Tensor:
        """The prior of `data.source`, float32 (C, *size); counted once and kept on disk.

        Raises:
            DatasetError: If the source has no labels, or one can't be read.
        """
        if data.source is None:
            raise DatasetError("data.source isn't set, but a spatial prior is counted on its labels.")
        size = self.size[0], self.size[1]
        return load_or_count_prior(
            data.source, data.label_space, data.cache_dir, size, self.radius, self.sigma, self.over
        )
