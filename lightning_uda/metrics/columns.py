"""Names of scores, in logs and in tables: `miou`, `miou_<subset>`, `iou_<class name>`, each also at a fixed size."""

from __future__ import annotations

import re

_AT_SIZE = re.compile(r"_at_(\d+x\d+)$")


def size_name(size: tuple[int, int]) -> str:
    """A height and width in names: "512x1024"."""
    return f"{size[0]}x{size[1]}"


def at_size(column: str, size: str | None) -> str:
    """Name of a score that is taken at a size: `miou_at_512x1024`; `None` is the size of the labels, `miou`."""
    return column if size is None else f"{column}_at_{size}"


def scored_size(column: str) -> str | None:
    """The size in a name, such as "512x1024"; `None` for scores at the size of the labels."""
    found = _AT_SIZE.search(column)
    return None if found is None else found[1]


def mean_label(column: str) -> str:
    """How tables call a mean: `mIoU`, `mIoU (13)`, `mIoU at 512x1024`, `mIoU (13) at 512x1024`."""
    stem, size = _AT_SIZE.sub("", column), scored_size(column)
    subset = stem.removeprefix("miou").removeprefix("_")
    return "mIoU" + (f" ({subset})" if subset else "") + (f" at {size}" if size else "")
