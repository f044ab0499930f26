"""Draws a street scene: first the ground and the houses, then all that stands in the street from far to near."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.datasets.minicity import figures, scenery, vehicles
from lightning_uda.datasets.minicity.canvas import SUPERSAMPLING, Air, Box, Camera, Canvas, Point3, shaded
from lightning_uda.datasets.minicity.street import NEAR, Street, sample_street, sign
from lightning_uda.datasets.minicity.style import Style
from lightning_uda.label_spaces import IGNORE_INDEX

Thing = tuple[float, Callable[[], None]]
"""Depth, and what draws it."""


def draw_scene(
    rng: np.random.Generator, style: Style, size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draws one scene.

    Args:
        rng: Source of all randomness.
        style: Layout statistics and colours; the photography's haze is drawn too, its other effects aren't.
        size: (height, width) in pixels.

    Returns:
        Picture, uint8 (H, W, 3) RGB, and label map, uint8 (H, W) of Cityscapes train ids and 255.
    """
    canvas = _canvas(rng, style, size)
    street = sample_street(canvas, style.scene)
    scenery.draw_sky(canvas, style)
    scenery.draw_skyline(canvas, style)
    scenery.draw_ground(canvas, style, street)
    for side in (0, 1):
        scenery.draw_houses(canvas, style, street, side)
        scenery.draw_barrier(canvas, style, street, side)
    things = _place_vehicles(canvas, style, street) + _place_figures(canvas, style, street)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    if canvas.chance(style.scene.hood):
        _draw_hood(canvas, style)
    return canvas.finished()


def _canvas(rng: np.random.Generator, style: Style, size: tuple[int, int]) -> Canvas:
    scene, palette = style.scene, style.palette
    height, width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    ranges = (scene.focal, scene.camera_height, scene.horizon, scene.vanishing_shift, style.photography.haze)
    focal, eye, horizon, shift, density = (low + (high - low) * rng.random() for low, high in ranges)
    camera = Camera(focal * (width + 2 * height) / 2, eye, (width * (0.5 + shift), height * horizon))
    haze = palette.haze[int(rng.integers(len(palette.haze)))]
    air = Air(haze, density, 1 if rng.random() < 0.5 else -1)
    return Canvas(size, camera, air, rng, palette.jitter)


def _place_vehicles(canvas: Canvas, style: Style, street: Street) -> list[Thing]:
    """Rare, large vehicles first, then cars: in the own lane, oncoming, parked at the kerb, or crossing."""
    scene = style.scene
    things: list[Thing] = []
    kinds = [kind for kind in ("train", "bus", "truck") if canvas.chance(getattr(scene, kind))]
    kinds += ["car"] * canvas.count(scene.cars)
    for kind in kinds:
        for _ in range(4):
            placed = _vehicle_box(canvas, style, street, kind)
            if placed is not None:
                things.append(placed)
                break
    return things


def _vehicle_box(canvas: Canvas, style: Style, street: Street, kind: str) -> Thing | None:
    length, height, width = vehicles.SIZES[kind]
    scale = canvas.uniform((0.92, 1.1))
    dimensions: Point3 = (length * scale, height * scale, width * canvas.uniform((0.95, 1.05)))
    depth = canvas.uniform(style.scene.vehicle_depth) if kind != "car" else 5.0 + 30.0 * canvas.rng.random() ** 1.5
    lane = canvas.rng.random()
    half = dimensions[2] / 2
    if lane < 0.12:
        heading = "left" if canvas.chance(0.5) else "right"
        x, z = canvas.uniform((-0.35, 0.35)) * depth, depth + 3.0
        free = street.claim(x, z, dimensions[0], dimensions[2])
    else:
        heading = "oncoming" if lane < 0.45 else "away"
        parked = canvas.chance(0.5)
        edge = -street.kerb[0] + 0.3 + half if heading == "oncoming" else street.kerb[1] - 0.3 - half
        center = (street.kerb[1] - street.kerb[0]) / 2
        x, z = (edge if parked else (edge + center + (half if edge > 0 else -half)) / 2), depth
        free = street.claim(x, z, dimensions[2], dimensions[0])
    if not free:
        return None
    draw = {
        "car": vehicles.draw_car, "truck": vehicles.draw_truck, "bus": vehicles.draw_bus, "train": vehicles.draw_train
    }[kind]  # fmt: skip
    box = Box(canvas, x, z, dimensions, heading)
    if kind == "train":
        _draw_rails(canvas, box)
    return z, partial(draw, canvas, style.palette, box)


def _draw_rails(canvas: Canvas, box: Box) -> None:
    """Rails along the track of a tram, in the picture alone."""
    for across in (0.2, 0.8):
        if box.heading in ("left", "right"):
            z = box.z + across * box.width
            canvas.polygon(((-60, 0, z), (60, 0, z), (60, 0, z + 0.18), (-60, 0, z + 0.18)), (52, 48, 48))
        else:
            x = box.x + (across - 0.5) * box.width
            canvas.polygon(
                ((x - 0.07, 0, NEAR), (x + 0.07, 0, NEAR), (x + 0.07, 0, 80), (x - 0.07, 0, 80)), (52, 48, 48)
            )


def _place_figures(canvas: Canvas, style: Style, street: Street) -> list[Thing]:
    """Two-wheelers, persons, poles, trees, bushes and clutter."""
    scene, palette = style.scene, style.palette
    things: list[Thing] = []
    for share, draw in ((scene.motorcycle, figures.draw_motorcycle), (scene.bicycle, figures.draw_bicycle)):
        if canvas.chance(share):
            for _ in range(canvas.count((1, 2))):
                x, z = _spot(canvas, street, canvas.uniform(scene.two_wheeler_depth), 2.0, 0.6)
                ridden = canvas.chance(scene.ridden)
                things.append((z, partial(draw, canvas, palette, x, z, ridden)))
    for _ in range(canvas.count(scene.persons)):
        x, z = _spot(canvas, street, canvas.uniform(scene.person_depth) * canvas.uniform((1.0, 1.3)), 0.7, 0.4)
        things.append((z, partial(figures.draw_person, canvas, palette, x, z)))
    return things + _place_furniture(canvas, style, street)


def _spot(canvas: Canvas, street: Street, depth: float, width: float, crossing: float) -> tuple[float, float]:
    """A free place inside the view: on the road with probability `crossing`, else on a sidewalk."""
    reach = 0.45 * canvas.width * depth / canvas.camera.focal
    for _ in range(6):
        if canvas.chance(crossing):
            x = canvas.uniform((max(-reach, -street.kerb[0]), min(reach, street.kerb[1])))
        else:
            side = canvas.count((0, 1))
            x = sign(side) * min(canvas.uniform((street.kerb[side] + 0.3, street.walk[side])), reach)
        if street.claim(x, depth, width, 0.5):
            break
        depth *= 1.08
    return x, depth


def _place_furniture(canvas: Canvas, style: Style, street: Street) -> list[Thing]:
    """Poles at the kerb, trees and bushes at the sidewalk's far edge, bins and boxes anywhere on it."""
    scene, palette = style.scene, style.palette
    things: list[Thing] = []
    kinds = ("lamp", "light", "light", "sign", "sign", "post")
    for number in range(canvas.count(scene.poles)):
        kind = kinds[canvas.count((0, len(kinds) - 1))] if number > 1 else ("light", "sign")[number]
        side, z = canvas.count((0, 1)), canvas.uniform((8, 24))
        x = sign(side) * (street.kerb[side] + canvas.uniform((0.3, 0.9)))
        things.append((z, partial(figures.draw_pole, canvas, palette, x, z, kind)))
    for _ in range(canvas.count(scene.trees)):
        side, z = canvas.count((0, 1)), canvas.uniform((9, 50))
        x = sign(side) * (street.verge[side] - canvas.uniform((0.0, 0.6)))
        if canvas.chance(0.7):
            things.append((z, partial(figures.draw_tree, canvas, palette, x, z)))
        else:
            height = canvas.uniform((0.9, 1.8))
            things.append((z, partial(figures.draw_bush, canvas, palette, x, z, height)))
    if canvas.chance(scene.clutter):
        side, z = canvas.count((0, 1)), canvas.uniform((7, 20))
        x = sign(side) * (street.kerb[side] + 1.0)
        things.append((z, partial(_draw_bin, canvas, x, z)))
    return things


def _draw_bin(canvas: Canvas, x: float, z: float) -> None:
    sprite, color = canvas.sprite(x, z), canvas.pick(((70, 90, 80), (110, 90, 60), (60, 60, 70)))
    sprite.polygon(((-0.35, 0), (0.35, 0), (0.42, 1.0), (-0.42, 1.0)), color, IGNORE_INDEX)
    sprite.line(((-0.44, 1.02), (0.44, 1.02)), 0.14, shaded(color, 0.6), IGNORE_INDEX)


def _draw_hood(canvas: Canvas, style: Style) -> None:
    """The bonnet of the own car at the lower edge (void)."""
    color, width, height = canvas.pick(style.palette.car), canvas.width, canvas.height
    center, rise = (round(width * canvas.uniform((0.47, 0.53))), height), canvas.uniform((0.06, 0.12))
    for scale, tone in ((1.0, 0.55), (0.94, 0.8), (0.6, 0.95)):
        axes = (round(width * 0.48 * scale), round(height * rise * scale))
        cv2.ellipse(canvas.image, center, axes, 0, 0, 360, shaded(color, tone), -1)
    cv2.ellipse(canvas.label, center, (round(width * 0.48), round(height * rise)), 0, 0, 360, IGNORE_INDEX, -1)
