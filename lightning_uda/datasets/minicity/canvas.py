"""A picture and its label map, painted together through one pinhole camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, exp, pi, sin

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.datasets.minicity.style import Color, Colors, Range

SUPERSAMPLING = 2
"""Canvas pixels per picture pixel and axis; averaged away, they smooth the edges of the picture."""

Point2 = tuple[float, float]
Point3 = tuple[float, float, float]
_CIRCLE = tuple((cos(2 * pi * k / 12), sin(2 * pi * k / 12)) for k in range(12))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street; X right, Y up, Z ahead, in metres, the eye above X = Z = 0.

    Attributes:
        focal: Focal length in canvas pixels.
        height: Of the eye above the road in metres.
        center: Vanishing point (column, row) in canvas pixels.
    """

    focal: float
    height: float
    center: Point2


@dataclass(frozen=True)
class Air:
    """Light and air of a scene: haze colour, haze density in 1/m, and -1 or 1 for sun from the left or the right."""

    haze: Color
    density: float
    sun: int


class Canvas:
    """Paints world polygons, the later over the earlier, into an RGB picture and a label map.

    Args:
        size: (height, width) of the final picture.
        camera: Projects metres to canvas pixels.
        air: Haze and light.
        rng: Where colours are drawn from.
        jitter: Spread of the brightness of drawn colours, as a factor.
    """

    def __init__(
        self, size: tuple[int, int], camera: Camera, air: Air, rng: np.random.Generator, jitter: float
    ) -> None:
        self.height, self.width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
        self.image = np.zeros((self.height, self.width, 3), dtype=np.uint8)
        self.label = np.full((self.height, self.width), 255, dtype=np.uint8)
        self.camera, self.air, self.rng, self.jitter = camera, air, rng, jitter

    def uniform(self, bounds: Range) -> float:
        """A uniform draw."""
        return bounds[0] + (bounds[1] - bounds[0]) * self.rng.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self.rng.random() < probability)

    def count(self, bounds: tuple[int, int]) -> int:
        """A uniform integer, both ends included."""
        return int(self.rng.integers(bounds[0], bounds[1] + 1))

    def pick(self, colors: Colors) -> Color:
        """One of the colours, a little brighter or darker."""
        return shaded(colors[int(self.rng.integers(len(colors)))], self.uniform((1 - self.jitter, 1 + self.jitter)))

    def hazy(self, color: Color, depth: float) -> Color:
        """A colour as seen through `depth` metres of air."""
        keep = exp(-self.air.density * depth)
        lost, haze = 1 - keep, self.air.haze
        return (
            keep * color[0] + lost * haze[0],
            keep * color[1] + lost * haze[1],
            keep * color[2] + lost * haze[2],
        )

    def project(self, world: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        """World points (..., 3) with Z > 0 to canvas pixels (..., 2)."""
        scale = self.camera.focal / world[..., 2]
        pixels = np.empty((*world.shape[:-1], 2))
        pixels[..., 0] = self.camera.center[0] + scale * world[..., 0]
        pixels[..., 1] = self.camera.center[1] + scale * (self.camera.height - world[..., 1])
        return np.rint(pixels).astype(np.int32)

    def polygon(self, points: Sequence[Point3], color: Color | None, label: int | None = None) -> None:
        """Fills a world polygon; `None` leaves the picture, or the label map, as it was."""
        camera, (column, row) = self.camera, self.camera.center
        corners = [
            (round(column + camera.focal / z * x), round(row + camera.focal / z * (camera.height - y)))
            for x, y, z in points
        ]
        pixels = [np.array(corners, dtype=np.int32)]
        if color is not None:
            depth = sum(point[2] for point in points) / len(points)
            cv2.fillPoly(self.image, pixels, self.hazy(color, depth))
        if label is not None:
            cv2.fillPoly(self.label, pixels, label)

    def details(self, quads: npt.NDArray[np.float64], color: Color) -> None:
        """Fills many world quads (N, 4, 3) that don't overlap, in the picture alone."""
        if len(quads):
            cv2.fillPoly(
                self.image, list(self.project(quads)), self.hazy(color, float(quads[..., 2].sum()) / (4 * len(quads)))
            )

    def sprite(self, x: float, z: float, mirrored: bool = False) -> Sprite:
        """A flat figure that faces the camera and stands on the ground at (x, z)."""
        return Sprite(self, x, z, -1.0 if mirrored else 1.0)

    def finished(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Picture (H, W, 3) and label map (H, W) at the final size."""
        size = (self.width // SUPERSAMPLING, self.height // SUPERSAMPLING)
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA)
        return image.astype(np.uint8, copy=False), self.label[::SUPERSAMPLING, ::SUPERSAMPLING].copy()


class Sprite:
    """Paints shapes given in metres right of and above a foot point."""

    def __init__(self, canvas: Canvas, x: float, z: float, direction: float) -> None:
        self.canvas, self.depth = canvas, z
        self.scale = canvas.camera.focal / z
        self.column = canvas.camera.center[0] + self.scale * x
        self.row = canvas.camera.center[1] + self.scale * canvas.camera.height
        self.direction = direction

    def _pixel(self, point: Point2) -> tuple[int, int]:
        return (
            round(self.column + self.direction * self.scale * point[0]),
            round(self.row - self.scale * point[1]),
        )

    def _size(self, length: float) -> int:
        return max(SUPERSAMPLING, round(self.scale * length))

    def polygon(self, points: Sequence[Point2], color: Color | None, label: int | None = None) -> None:
        """Fills a polygon."""
        pixels = [np.array([self._pixel(point) for point in points], dtype=np.int32)]
        if color is not None:
            cv2.fillPoly(self.canvas.image, pixels, self.canvas.hazy(color, self.depth))
        if label is not None:
            cv2.fillPoly(self.canvas.label, pixels, label)

    def disc(self, center: Point2, radius: float, color: Color | None, label: int | None = None) -> None:
        """Fills a circle."""
        pixel, size = self._pixel(center), max(1, round(self.scale * radius))
        if color is not None:
            cv2.circle(self.canvas.image, pixel, size, self.canvas.hazy(color, self.depth), -1)
        if label is not None:
            cv2.circle(self.canvas.label, pixel, size, label, -1)

    def ring(self, center: Point2, radius: float, thickness: float, color: Color) -> None:
        """Draws a circle line, in the picture alone."""
        size, width = max(1, round(self.scale * radius)), max(1, round(self.scale * thickness))
        cv2.circle(self.canvas.image, self._pixel(center), size, self.canvas.hazy(color, self.depth), width)

    def ellipse(self, center: Point2, axes: Point2, color: Color | None, label: int | None = None) -> None:
        """Fills an upright ellipse with the given half axes."""
        pixel = self._pixel(center)
        size = (max(1, round(self.scale * axes[0])), max(1, round(self.scale * axes[1])))
        if color is not None:
            cv2.ellipse(self.canvas.image, pixel, size, 0, 0, 360, self.canvas.hazy(color, self.depth), -1)
        if label is not None:
            cv2.ellipse(self.canvas.label, pixel, size, 0, 0, 360, label, -1)

    def line(self, points: Sequence[Point2], thickness: float, color: Color | None, label: int | None = None) -> None:
        """Draws an open line, at least one picture pixel thick."""
        pixels, size = [np.array([self._pixel(point) for point in points], dtype=np.int32)], self._size(thickness)
        if color is not None:
            cv2.polylines(self.canvas.image, pixels, False, self.canvas.hazy(color, self.depth), size)
        if label is not None:
            cv2.polylines(self.canvas.label, pixels, False, label, size)


class Box:
    """A vehicle's frame: points are (along, height, across), each in [0, 1], along from rear to front.

    Args:
        canvas: To paint on.
        x: Middle of the footprint's near edge.
        z: Depth of the near edge.
        dimensions: (length, height, width) in metres.
        heading: "away" (rear seen), "oncoming" (front seen), "left" or "right" (seen from the side).
    """

    def __init__(self, canvas: Canvas, x: float, z: float, dimensions: Point3, heading: str) -> None:
        self.canvas, self.x, self.z, self.heading = canvas, x, z, heading
        self.length, self.height, self.width = dimensions
        self.side = self._visible_side()
        self.end = self._visible_end()
        lit = 1.05 if self.x * canvas.air.sun < 0 else 0.78
        self.side_light, self.end_light = (0.95, lit) if heading in ("left", "right") else (lit, 0.92)

    def _visible_side(self) -> float | None:
        if self.heading in ("left", "right"):
            return 0.0
        if abs(self.x) <= self.width / 2:
            return None
        return 1.0 if self.x < 0 else 0.0

    def _visible_end(self) -> float | None:
        if self.heading in ("away", "oncoming"):
            return float(self.heading == "oncoming")
        if abs(self.x) <= self.length / 2:
            return None
        return float((self.heading == "left") == (self.x > 0))

    def world(self, point: Point3) -> Point3:
        """World coordinates of a point of the box."""
        along, height, across = point
        y = height * self.height
        if self.heading in ("left", "right"):
            sign = 1.0 if self.heading == "right" else -1.0
            return self.x + sign * (along - 0.5) * self.length, y, self.z + across * self.width
        ahead = along if self.heading == "away" else 1 - along
        return self.x + (across - 0.5) * self.width, y, self.z + ahead * self.length

    def face(self, points: Sequence[Point3], color: Color | None, label: int | None = None) -> None:
        """Fills a polygon on or in the box."""
        self.canvas.polygon([self.world(point) for point in points], color, label)

    def on_side(self, points: Sequence[Point2], color: Color, label: int | None = None) -> None:
        """Fills a polygon (along, height) on the visible side, if there is one."""
        if self.side is not None:
            self.face([(u, v, self.side) for u, v in points], shaded(color, self.side_light), label)

    def on_end(self, points: Sequence[Point2], color: Color, label: int | None = None, inset: float = 0.0) -> None:
        """Fills a polygon (across, height) on the visible end, moved inwards by `inset` of the length."""
        if self.end is not None:
            along = self.end + (inset if self.end < 0.5 else -inset)
            self.face([(along, v, w) for w, v in points], shaded(color, self.end_light), label)

    def wheel(self, along: float, radius: float, label: int) -> None:
        """A wheel of `radius` metres on the visible side."""
        for size, color in ((radius, (24.0, 24.0, 26.0)), (radius * 0.5, (150.0, 150.0, 152.0))):
            rim = [(along + size * c / self.length, (radius + size * s) / self.height) for c, s in _CIRCLE]
            self.on_side(rim, color, label)

    def shadow(self) -> None:
        """Darkens the ground under the box, in the picture alone."""
        ground = ((-0.02, 0.0, -0.1), (1.02, 0.0, -0.1), (1.02, 0.0, 1.1), (-0.02, 0.0, 1.1))
        self.face(ground, (44.0, 44.0, 50.0))


def rectangle(left: float, bottom: float, right: float, top: float) -> tuple[Point2, Point2, Point2, Point2]:
    """Corners of an upright rectangle."""
    return ((left, bottom), (right, bottom), (right, top), (left, top))


def shaded(color: Color, factor: float) -> Color:
    """A brighter or darker colour, kept in 0-255."""
    return min(255.0, color[0] * factor), min(255.0, color[1] * factor), min(255.0, color[2] * factor)
