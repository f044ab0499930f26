"""What lines a street: sky, distant skyline, ground, houses, walls and fences."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.datasets.minicity.canvas import Canvas, shaded
from lightning_uda.datasets.minicity.figures import draw_tree
from lightning_uda.datasets.minicity.street import FAR, NEAR, Street, sign
from lightning_uda.datasets.minicity.style import Color, Style
from lightning_uda.label_spaces import CITYSCAPES_CLASSES

ROAD, SIDEWALK, BUILDING, WALL, FENCE, VEGETATION, TERRAIN, SKY = (
    CITYSCAPES_CLASSES.index(name)
    for name in ("road", "sidewalk", "building", "wall", "fence", "vegetation", "terrain", "sky")
)
FLOOR = 3.2
"""Height of a storey in metres."""


def draw_sky(canvas: Canvas, style: Style) -> None:
    """A sky that grows paler towards the horizon, with some clouds."""
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


def draw_skyline(canvas: Canvas, style: Style) -> None:
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
    corners = ((left, 0.0, near), (right, 0.0, near), (right, 0.0, far), (left, 0.0, far))
    pixels = [canvas.project(np.array(corners))]
    cv2.fillPoly(canvas.image, pixels, color)
    if label is not None:
        cv2.fillPoly(canvas.label, pixels, label)


def draw_ground(canvas: Canvas, style: Style, street: Street) -> None:
    """Grass everywhere, then sidewalks and the road, then haze over all of it."""
    palette = style.palette
    horizon = max(0, round(canvas.camera.center[1] + canvas.camera.focal * canvas.camera.height / FAR))
    grass, walk, road = (canvas.pick(colors) for colors in (palette.terrain, palette.sidewalk, palette.road))
    canvas.image[horizon:], canvas.label[horizon:] = grass, TERRAIN
    for side in (0, 1):
        s = sign(side)
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


def draw_houses(canvas: Canvas, style: Style, street: Street, side: int) -> None:
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
                x = sign(side) * (distance + canvas.uniform((1, 5)))
                draw_tree(canvas, style.palette, x, canvas.uniform((near, far)), canvas.uniform((0.9, 1.5)))
        else:
            _draw_house(canvas, style, sign(side), distance + canvas.uniform((0, 0.8)), near, far)


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


def draw_barrier(canvas: Canvas, style: Style, street: Street, side: int) -> None:
    """A wall or a fence along the verge, with some bushes and trees behind it."""
    if not street.barrier[side]:
        return
    x = sign(side) * street.verge[side]
    near = max(NEAR, canvas.camera.focal * street.verge[side] / canvas.width * 0.7)
    far = min(FAR, near + canvas.uniform((18, 45)))
    for _ in range(canvas.count((0, 2))):
        behind = x + sign(side) * canvas.uniform((1.5, 4))
        draw_tree(canvas, style.palette, behind, canvas.uniform((near + 4, far)))
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
        count = min(40, max(2, int((end - z) / 0.55)))
        pickets = _slots(z, end, (end - z) / count, 0.6)
        canvas.details(_street_quads(x, pickets, [(0.05, height)]), shaded(color, 0.9))
        for low in (0.25, height - 0.35):
            canvas.details(_street_quads(x, [(z, end)], [(low, low + 0.16)]), color)
        canvas.details(_street_quads(x, [(z, z + 0.25)], [(0, height + 0.1)]), shaded(color, 0.75))
