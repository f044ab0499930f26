"""Draws a street scene: first the ground and the houses, then all that stands in the street from far to near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.data.datasets.minicity import figures, vehicles
from lightning_uda.data.datasets.minicity.canvas import SUPERSAMPLING, Air, Box, Camera, Canvas, Point3, shaded
from lightning_uda.data.datasets.minicity.style import Color, Style
from lightning_uda.data.label_spaces import CITYSCAPES_CLASSES, IGNORE_INDEX

ROAD, SIDEWALK, BUILDING, WALL, FENCE, VEGETATION, TERRAIN, SKY = (
    CITYSCAPES_CLASSES.index(name)
    for name in ("road", "sidewalk", "building", "wall", "fence", "vegetation", "terrain", "sky")
)
FAR = 110.0
"""Depth in metres where the street ends."""
NEAR = 1.2
"""Depth in metres where the ground is cut off, below the picture's lower edge."""
FLOOR = 3.2
"""Height of a storey in metres."""


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


def draw_scene(
    rng: np.random.Generator, style: Style, size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draws one scene.

    Args:
        rng: Decides everything.
        style: Layout statistics and colours; the photography's haze is drawn too, its other effects aren't.
        size: (height, width) in pixels.

    Returns:
        Picture, uint8 (H, W, 3) RGB, and label map, uint8 (H, W) of Cityscapes train ids and 255.
    """
    canvas = _canvas(rng, style, size)
    street = _street(canvas, style)
    _draw_sky(canvas, style)
    _draw_skyline(canvas, style)
    _draw_ground(canvas, style, street)
    for side in (0, 1):
        _draw_houses(canvas, style, street, side)
        _draw_barrier(canvas, style, street, side)
    things = _place_vehicles(canvas, style, street) + _place_figures(canvas, style, street)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    if canvas.chance(style.scene.hood):
        _draw_hood(canvas, style)
    return canvas.finished()


Thing = tuple[float, Callable[[], None]]
"""Depth, and what draws it."""


def _canvas(rng: np.random.Generator, style: Style, size: tuple[int, int]) -> Canvas:
    scene, palette = style.scene, style.palette
    height, width = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    ranges = (scene.focal, scene.camera_height, scene.horizon, scene.vanishing_shift, style.photography.haze)
    focal, eye, horizon, shift, density = (low + (high - low) * rng.random() for low, high in ranges)
    camera = Camera(focal * (width + 2 * height) / 2, eye, (width * (0.5 + shift), height * horizon))
    haze = palette.haze[int(rng.integers(len(palette.haze)))]
    air = Air(haze, density, 1 if rng.random() < 0.5 else -1)
    return Canvas(size, camera, air, rng, palette.jitter)


def _street(canvas: Canvas, style: Style) -> Street:
    scene = style.scene
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


def _sign(side: int) -> float:
    return 1.0 if side else -1.0


def _draw_sky(canvas: Canvas, style: Style) -> None:
    top, low = (np.array(canvas.pick(colors)) for colors in (style.palette.sky_top, style.palette.sky_low))
    horizon = round(canvas.camera.center[1])
    ramp = np.linspace(0, 1, horizon + 1)[:, None] ** 1.3
    canvas.image[: horizon + 1] = (top + (low - top) * ramp)[:, None].astype(np.uint8)
    canvas.label[: horizon + 1] = SKY
    white = (min(255.0, low[0] + 25), min(255.0, low[1] + 22), min(255.0, low[2] + 18))
    for _ in range(canvas.count((0, 4))):
        column, row = canvas.uniform((0, canvas.width)), canvas.uniform((0.05, 0.75)) * horizon
        for _ in range(5):
            reach = canvas.uniform((0.03, 0.10)) * canvas.width
            center = (round(column + canvas.uniform((-1, 1)) * reach), round(row))
            cv2.ellipse(canvas.image, center, (round(reach), max(1, round(reach * 0.22))), 0, 0, 360, white, -1)


def _draw_skyline(canvas: Canvas, style: Style) -> None:
    """Distant houses and woods where the street ends."""
    left = -80.0
    while left < 80:
        right = left + canvas.uniform((8, 22))
        if canvas.chance(0.55):
            top, color, label = (
                canvas.uniform(style.scene.building_height),
                canvas.pick(style.palette.building),
                BUILDING,
            )
        else:
            top, color, label = canvas.uniform((4, 10)), canvas.pick(style.palette.vegetation), VEGETATION
        corners = (
            (left, 0, FAR),
            (right, 0, FAR),
            (right, top, FAR),
            ((left + right) / 2, top * 1.1, FAR),
            (left, top, FAR),
        )
        canvas.polygon(corners, shaded(color, 0.9), label)
        left = right


def _band(canvas: Canvas, left: float, right: float, near: float, far: float, color: Color, label: int | None) -> None:
    """A rectangle on the ground; haze is laid over the whole ground later."""
    pixels = [canvas.project(((left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)))]
    cv2.fillPoly(canvas.image, pixels, color)
    if label is not None:
        cv2.fillPoly(canvas.label, pixels, label)


def _draw_ground(canvas: Canvas, style: Style, street: Street) -> None:
    palette = style.palette
    horizon = max(0, round(canvas.camera.center[1] + canvas.camera.focal * canvas.camera.height / FAR))
    grass, walk, road = (canvas.pick(colors) for colors in (palette.terrain, palette.sidewalk, palette.road))
    canvas.image[horizon:], canvas.label[horizon:] = grass, TERRAIN
    for side in (0, 1):
        s = _sign(side)
        if street.verge[side] == street.walk[side] and not street.barrier[side]:
            _band(canvas, s * street.kerb[side], s * (street.facade[side] + 4), NEAR, FAR, walk, SIDEWALK)
        else:
            _band(canvas, s * street.kerb[side], s * street.walk[side], NEAR, FAR, walk, SIDEWALK)
        for joint in np.arange(2.0, 26.0, 2.0).tolist():
            _band(canvas, s * street.kerb[side], s * street.walk[side], joint, joint + 0.08, shaded(walk, 0.86), None)
        _band(
            canvas,
            s * (street.kerb[side] - 0.2),
            s * (street.kerb[side] + 0.15),
            NEAR,
            FAR,
            shaded(walk, 1.12),
            SIDEWALK,
        )
    _draw_road(canvas, style, street, road)
    rows = np.arange(horizon + 1, canvas.height) - canvas.camera.center[1]
    keep = np.exp(-canvas.air.density * canvas.camera.focal * canvas.camera.height / rows)[:, None, None]
    ground = canvas.image[horizon + 1 :]
    np.copyto(
        ground, ground * keep.astype(np.float32) + ((1 - keep) * canvas.air.haze).astype(np.float32), casting="unsafe"
    )


def _draw_road(canvas: Canvas, style: Style, street: Street, road: Color) -> None:
    left, right = -street.kerb[0] + 0.2, street.kerb[1] - 0.2
    _band(canvas, left - 0.25, left, NEAR, FAR, shaded(road, 0.7), ROAD)
    _band(canvas, right, right + 0.25, NEAR, FAR, shaded(road, 0.7), ROAD)
    _band(canvas, left, right, NEAR, FAR, road, ROAD)
    marking, middle = canvas.pick(style.palette.marking), (left + right) / 2
    if canvas.chance(0.8):
        start, dash = canvas.uniform((0, 5)), 3.0 if canvas.chance(0.7) else 5.9
        for near in np.arange(NEAR + start, 80.0, 6.0).tolist():
            _band(canvas, middle - 0.09, middle + 0.09, near, near + dash, marking, None)
    if canvas.chance(0.4):
        for edge in (left + 0.4, right - 0.4):
            _band(canvas, edge - 0.06, edge + 0.06, NEAR, FAR, marking, None)
    if canvas.chance(0.3):
        near = canvas.uniform((5, 22))
        for stripe in np.arange(left + 0.3, right - 0.5, 1.0).tolist():
            _band(canvas, stripe, stripe + 0.5, near, near + 3.0, marking, None)
    for _ in range(canvas.count((0, 3))):
        x, near = canvas.uniform((left, right - 1)), canvas.uniform((3, 30))
        _band(canvas, x, x + canvas.uniform((0.5, 2)), near, near + canvas.uniform((1, 6)), shaded(road, 0.88), None)


def _draw_houses(canvas: Canvas, style: Style, street: Street, side: int) -> None:
    """A row of plots from far to near, each a house or a green gap."""
    scene, distance = style.scene, street.facade[side]
    visible = canvas.camera.focal * distance / canvas.width
    plots, near = [], max(NEAR, visible * 0.8 - canvas.uniform((0, 8)))
    while near < FAR:
        far = near + canvas.uniform(scene.building_length)
        plots.append((near, min(far, FAR)))
        near = far
    for near, far in reversed(plots):
        if canvas.chance(scene.building_gap):
            for _ in range(2):
                x = _sign(side) * (distance + canvas.uniform((1, 5)))
                figures.draw_tree(canvas, style.palette, x, canvas.uniform((near, far)), canvas.uniform((0.9, 1.5)))
        else:
            _draw_house(canvas, style, _sign(side), distance + canvas.uniform((0, 0.8)), near, far)


def _draw_house(canvas: Canvas, style: Style, sign: float, distance: float, near: float, far: float) -> None:
    color, glass = canvas.pick(style.palette.building), canvas.pick(style.palette.window)
    height, depth = canvas.uniform(style.scene.building_height), 9.0
    street_light, front_light = (1.05, 0.85) if sign * canvas.air.sun < 0 else (0.78, 1.0)
    street_face, front = shaded(color, street_light), shaded(color, front_light)
    x, outer = sign * distance, sign * (distance + depth)
    canvas.polygon(((x, 0, near), (x, 0, far), (x, height, far), (x, height, near)), street_face, BUILDING)
    canvas.polygon(((x, 0, near), (outer, 0, near), (outer, height, near), (x, height, near)), front, BUILDING)
    if canvas.chance(0.4):
        ridge = height + canvas.uniform((1.5, 3.5))
        roof = shaded((150, 80, 64), canvas.uniform((0.5, 1.1)))
        inner = sign * (distance + depth / 2)
        canvas.polygon(((x, height, near), (x, height, far), (inner, ridge, far), (inner, ridge, near)), roof, BUILDING)
        canvas.polygon(((x, height, near), (outer, height, near), (inner, ridge, near)), front, BUILDING)
    for low, high, factor in ((0.0, 0.5, 0.7), (FLOOR - 0.25, FLOOR, 1.15), (height - 0.4, height, 1.2)):
        canvas.details(_street_quads(x, [(near, far)], [(low, high)]), shaded(street_face, factor))
    columns = _slots(near, far, canvas.uniform((2.2, 3.4)), 0.55)
    floors = _slots(0.0, height, FLOOR, 0.55)
    canvas.details(_street_quads(x, columns, floors[1:]), glass)
    canvas.details(
        _front_quads(near, _slots(distance, distance + depth, 3.0, 0.5), sign, floors[1:]), shaded(glass, 0.9)
    )
    shop = shaded(glass, 0.8) if canvas.chance(0.5) else glass
    canvas.details(_street_quads(x, _slots(near, far, canvas.uniform((3, 5)), 0.7), [(0.5, 2.5)]), shop)


def _slots(start: float, stop: float, pitch: float, share: float) -> list[tuple[float, float]]:
    """Evenly spaced openings, each `share` of its field of about `pitch` metres."""
    count = max(1, int((stop - start) / pitch))
    field_size, gap = (stop - start) / count, (1 - share) / 2
    return [(start + (k + gap) * field_size, start + (k + 1 - gap) * field_size) for k in range(count)]


def _street_quads(
    x: float, spans: list[tuple[float, float]], heights: list[tuple[float, float]]
) -> npt.NDArray[np.float64]:
    """Rectangles (N, 4, 3) on the plane X = x."""
    quads = [((x, b, n), (x, b, f), (x, t, f), (x, t, n)) for b, t in heights for n, f in spans]
    return np.array(quads, dtype=np.float64).reshape(-1, 4, 3)


def _front_quads(
    z: float, spans: list[tuple[float, float]], sign: float, heights: list[tuple[float, float]]
) -> npt.NDArray[np.float64]:
    """Rectangles (N, 4, 3) on the plane Z = z, at distances `spans` from the street's axis."""
    quads = [
        ((sign * n, b, z), (sign * f, b, z), (sign * f, t, z), (sign * n, t, z)) for b, t in heights for n, f in spans
    ]
    return np.array(quads, dtype=np.float64).reshape(-1, 4, 3)


def _draw_barrier(canvas: Canvas, style: Style, street: Street, side: int) -> None:
    """A wall or a fence along the verge, with some bushes and trees behind it."""
    if not street.barrier[side]:
        return
    x = _sign(side) * street.verge[side]
    near = max(NEAR, canvas.camera.focal * street.verge[side] / canvas.width * 0.7)
    far = min(FAR, near + canvas.uniform((18, 45)))
    for _ in range(canvas.count((0, 2))):
        behind = x + _sign(side) * canvas.uniform((1.5, 4))
        figures.draw_tree(canvas, style.palette, behind, canvas.uniform((near + 4, far)))
    if street.barrier[side] == "wall":
        _draw_wall(canvas, style, x, near, far)
    else:
        _draw_fence(canvas, style, x, near, far)


def _draw_wall(canvas: Canvas, style: Style, x: float, near: float, far: float) -> None:
    """A wall of stone courses with a coping; its end face closes it towards the camera."""
    color, height = canvas.pick(style.palette.wall), canvas.uniform((2.2, 3.2))
    edges = np.geomspace(near, far, 6).tolist()
    for z, end in zip(edges[-2::-1], edges[:0:-1], strict=True):
        canvas.polygon(((x, 0, z), (x, 0, end), (x, height, end), (x, height, z)), color, WALL)
        courses = [(k * 0.5, k * 0.5 + 0.09) for k in range(1, int(height / 0.5) + 1)]
        canvas.details(_street_quads(x, [(z, end)], courses), shaded(color, 0.68))
        joints = [(z + k * 1.6, z + k * 1.6 + 0.12) for k in range(1, int((end - z) / 1.6))]
        for row, (low, _) in enumerate(courses):
            shifted = [(a + 0.8 * (row % 2), b + 0.8 * (row % 2)) for a, b in joints]
            canvas.details(_street_quads(x, shifted, [(low - 0.5, low)]), shaded(color, 0.74))
        canvas.details(_street_quads(x, [(z, end)], [(height - 0.18, height)]), shaded(color, 1.25))


def _draw_fence(canvas: Canvas, style: Style, x: float, near: float, far: float) -> None:
    """A fence of pickets, rails and posts; its label covers the gaps too."""
    color, height = canvas.pick(style.palette.fence), canvas.uniform((1.6, 2.4))
    canvas.polygon(((x, 0, near), (x, 0, far), (x, height, far), (x, height, near)), None, FENCE)
    edges = np.geomspace(near, far, 6).tolist()
    for z, end in zip(edges[-2::-1], edges[:0:-1], strict=True):
        count = min(40, max(2, int((end - z) / 0.45)))
        pickets = _slots(z, end, (end - z) / count, 0.55)
        canvas.details(_street_quads(x, pickets, [(0.05, height)]), shaded(color, 0.9))
        for low in (0.25, height - 0.35):
            canvas.details(_street_quads(x, [(z, end)], [(low, low + 0.16)]), color)
        canvas.details(_street_quads(x, [(z, z + 0.25)], [(0, height + 0.1)]), shaded(color, 0.75))


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
                x, z = _spot(canvas, street, canvas.uniform(scene.small_depth), 2.0, 0.6)
                ridden = canvas.chance(scene.ridden)
                things.append((z, partial(draw, canvas, palette, x, z, ridden)))
    for _ in range(canvas.count(scene.persons)):
        x, z = _spot(canvas, street, canvas.uniform(scene.small_depth) * canvas.uniform((1.0, 1.3)), 0.7, 0.4)
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
            x = _sign(side) * min(canvas.uniform((street.kerb[side] + 0.3, street.walk[side])), reach)
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
        x = _sign(side) * (street.kerb[side] + canvas.uniform((0.3, 0.9)))
        things.append((z, partial(figures.draw_pole, canvas, palette, x, z, kind)))
    for _ in range(canvas.count(scene.trees)):
        side, z = canvas.count((0, 1)), canvas.uniform((9, 50))
        x = _sign(side) * (street.verge[side] - canvas.uniform((0.0, 0.6)))
        if canvas.chance(0.7):
            things.append((z, partial(figures.draw_tree, canvas, palette, x, z)))
        else:
            height = canvas.uniform((0.9, 1.8))
            things.append((z, partial(figures.draw_bush, canvas, palette, x, z, height)))
    if canvas.chance(scene.clutter):
        side, z = canvas.count((0, 1)), canvas.uniform((7, 20))
        x = _sign(side) * (street.kerb[side] + 1.0)
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
