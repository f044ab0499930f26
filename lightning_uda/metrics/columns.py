"""Names of scores, in logs and in tables: `miou`, `miou_<subset>`, `iou_<class name>`, each also in further scopes.

A scope says which pixels are counted, and at what size: `at_512x1024`, `within_3px_of_borders`,
`beyond_3px_of_borders`. `None` is the scope of all pixels at the size of the labels, and adds nothing to a name.
"""

from __future__ import annotations

import re

SCOPE = r"at_\d+x\d+|(?:within|beyond)_\d+px_of_borders"
"""Pattern of a scope's name."""

_IN_SCOPE = re.compile(rf"_({SCOPE})$")
_KINDS = ("", "at", "within", "beyond")  # in the order of tables
_MEAN = "miou"
_CLASS = "iou_"


def mean_column(subset: str | None = None) -> str:
    """Name of a mean IoU: `miou` over all classes, `miou_<subset>` over some."""
    return _MEAN if subset is None else f"{_MEAN}_{subset}"


def iou_column(class_name: str) -> str:
    """Name of the IoU of a class: `iou_<class name>`."""
    return f"{_CLASS}{class_name}"


def is_mean(column: str) -> bool:
    """Whether a name is that of a mean IoU, in any scope."""
    return column.startswith(_MEAN)


def size_scope(size: tuple[int, int]) -> str:
    """Scope of labels resized to a height and width: `at_512x1024`."""
    return f"at_{size[0]}x{size[1]}"


def border_scopes(distance: int) -> tuple[str, str]:
    """Scopes of the pixels within and beyond a distance of class borders, such as `within_3px_of_borders`."""
    return f"within_{distance}px_of_borders", f"beyond_{distance}px_of_borders"


def in_scope(column: str, scope: str | None) -> str:
    """Name of a score in a scope: `miou_at_512x1024`; `miou` in that of all pixels."""
    return column if scope is None else f"{column}_{scope}"


def scope_order(scope: str | None) -> tuple[int, str]:
    """Key to sort scopes by: all pixels, other sizes, within and beyond a distance of borders."""
    name = scope or ""
    return _KINDS.index(name.split("_")[0]), name


def scope_label(scope: str) -> str:
    """Name of a scope in tables: `at 512x1024`, `within 3 px of borders`."""
    return scope.replace("px", " px").replace("_", " ")


def score_label(column: str) -> str:
    """Name of a score in tables: `mIoU`, `mIoU (13) at 512x1024`, `road`, `road within 3 px of borders`."""
    scope = _IN_SCOPE.search(column)
    name = _IN_SCOPE.sub("", column)
    subset = name.removeprefix(_MEAN).removeprefix("_")
    mean = "mIoU" + (f" ({subset})" if subset else "")
    return (mean if is_mean(name) else name.removeprefix(_CLASS)) + (f" {scope_label(scope[1])}" if scope else "")
