"""Names of scores, in logs and in tables: `miou`, `miou_<subset>`, `iou_<class name>`, each also at a fixed size."""

from __future__ import annotations

import re

_AT_SIZE = re.compile(r"_at_(\d+x\d+)$")
_MEAN = "miou"


def mean_column(subset: str | None = None) -> str:
    """Name of a mean IoU: `miou` over all classes, `miou_<subset>` over some."""
    return _MEAN if subset is None else f"{_MEAN}_{subset}"


def iou_column(class_name: str) -> str:
    """Name of the IoU of a class: `iou_<class name>`."""
    return f"iou_{class_name}"


def is_mean(column: str) -> bool:
    """Whether a name is that of a mean IoU, at any size."""
    return column.startswith(_MEAN)


def size_name(size: tuple[int, int]) -> str:
    """A height and width in names: "512x1024"."""
    return f"{size[0]}x{size[1]}"


def at_size(column: str, size: str | None) -> str:
    """Name of a score that is taken at a size: `miou_at_512x1024`; `None` is the size of the labels, `miou`."""
    return column if size is None else f"{column}_at_{size}"


def mean_label(column: str) -> str:
    """Name of a mean in tables: `mIoU`, `mIoU (13)`, `mIoU at 512x1024`, `mIoU (13) at 512x1024`."""
    size = _AT_SIZE.search(column)
    subset = _AT_SIZE.sub("", column).removeprefix(_MEAN).removeprefix("_")
    return "mIoU" + (f" ({subset})" if subset else "") + (f" at {size[1]}" if size else "")
