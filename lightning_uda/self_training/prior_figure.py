"""The spatial prior as a picture, like Fig. 2 of CBST."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

_COLUMNS = 5
_TILE = (2.4, 1.5)  # inches


def draw_spatial_prior(prior: Tensor, classes: Sequence[str], path: str | Path) -> None:
    """Draws one heat map per class, each from 0 to its own maximum, as a PNG file.

    Args:
        prior: float (C, H, W); one that is 0 everywhere is named as absent.
        classes: C class names.
        path: The file; its folder is made if needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    step = max(1, prior.shape[-1] // 480)
    maps = prior[:, ::step, ::step].float().cpu().numpy()
    rows = math.ceil(len(maps) / _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _TILE[0], rows * _TILE[1]), layout="constrained")
    tiles = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for tile in tiles:
        tile.axis("off")
    for tile, heat, name in zip(tiles, maps, classes, strict=False):
        absent = not heat.any()
        tile.imshow(heat, cmap="turbo", vmin=0, vmax=1 if absent else heat.max())
        tile.set_title(f"{name} (absent)" if absent else name, fontsize=9)
    figure.savefig(path, dpi=110)
