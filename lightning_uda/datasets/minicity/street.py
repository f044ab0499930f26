"""The cross-section of a street, and which places in it are taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_uda.datasets.minicity.canvas import Canvas
from lightning_uda.datasets.minicity.style import SceneStatistics

FAR = 110.0
"""Depth in metres where the street ends."""
NEAR = 1.2
"""Depth in metres where the ground is cut off, below the picture's lower edge."""


@dataclass
class Street:
    """Cross-section of a street: for side 0 (left, X < 0) and 1 (right) the distances of its edges from X = 0.

    Attributes:
        kerb: Where the road ends.
        walk: Where the sidewalk ends.
        verge: Where the grass strip beyond the sidewalk ends; equal to `walk` without one.
        barrier: "wall", "fence" or "" on that line.
        facade: Where houses stand.
        taken: Footprints (left, right, near, far) of what already stands in the street.
    """

    kerb: list[float]
    walk: list[float]
    verge: list[float]
    barrier: list[str]
    facade: list[float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def claim(self, x: float, z: float, width: float, length: float) -> bool:
        """Takes a footprint (X middle, near Z) if it is free."""
        left, right, far = x - width / 2 - 0.15, x + width / 2 + 0.15, z + length + 0.8
        if any(left < r and right > x0 and z < f and far > n for x0, r, n, f in self.taken):
            return False
        self.taken.append((left, right, z, far))
        return True


def sample_street(canvas: Canvas, scene: SceneStatistics) -> Street:
    """Draws kerbs, sidewalks, verges, barriers and facade lines."""
    half, offset = canvas.uniform(scene.road_half_width), canvas.uniform((0.2, 0.45))
    kerb = [half * (1 + offset), half * (1 - offset)]
    walk = [edge + canvas.uniform(scene.sidewalk_width) for edge in kerb]
    verge = [edge + (canvas.uniform((2.0, 4.5)) if canvas.chance(scene.verge) else 0.0) for edge in walk]
    barrier = ["", ""]
    for kind, share in (("wall", scene.wall), ("fence", scene.fence)):
        if canvas.chance(share):
            side = canvas.count((0, 1))
            barrier[1 - side if barrier[side] else side] = kind
    facade = [edge + (canvas.uniform((5.0, 12.0)) if kind else 0.0) for edge, kind in zip(verge, barrier, strict=True)]
    return Street(kerb, walk, verge, barrier, facade)


def sign(side: int) -> float:
    """-1 for the left, 1 for the right."""
    return 1.0 if side else -1.0
