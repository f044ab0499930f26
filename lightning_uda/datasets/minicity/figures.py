"""Flat figures: persons, riders, two-wheelers, trees, poles, signs and lights, all sized in metres."""

from __future__ import annotations

from lightning_uda.datasets.minicity.canvas import Canvas, Sprite, rectangle, shaded
from lightning_uda.datasets.minicity.style import Color, Palette
from lightning_uda.label_spaces import CITYSCAPES_CLASSES

POLE, LIGHT, SIGN, VEGETATION, PERSON, RIDER, MOTORCYCLE, BICYCLE = (
    CITYSCAPES_CLASSES.index(name)
    for name in ("pole", "traffic light", "traffic sign", "vegetation", "person", "rider", "motorcycle", "bicycle")
)
TYRE: Color = (26, 26, 28)
WHITE: Color = (240, 240, 238)
RED: Color = (208, 34, 40)
BLUE: Color = (30, 82, 170)
YELLOW: Color = (244, 204, 40)


def draw_person(canvas: Canvas, palette: Palette, x: float, z: float) -> None:
    """A person on foot, walking or standing."""
    sprite = canvas.sprite(x, z, canvas.chance(0.5))
    tall = canvas.uniform((0.85, 1.08))
    top, trousers, skin = canvas.pick(palette.clothes), canvas.pick(palette.clothes), canvas.pick(palette.skin)
    stride = canvas.uniform((0.04, 0.26))
    sprite.ellipse((0, 0.02), (0.4, 0.06), (50, 50, 54))
    for foot, shade in ((-stride, 0.8), (stride, 0.95)):
        leg = ((foot - 0.08, 0), (foot + 0.12, 0), (0.17, 0.9 * tall), (-0.17, 0.9 * tall))
        sprite.polygon(leg, shaded(trousers, shade), PERSON)
    swing = stride * 0.8
    for hand in (-0.2 - swing, 0.2 + swing):
        sprite.line(((0.2 if hand > 0 else -0.2, 1.36 * tall), (hand, 0.82 * tall)), 0.11, shaded(top, 0.85), PERSON)
    torso = ((-0.2, 0.82), (0.2, 0.82), (0.26, 1.4), (0.1, 1.48), (-0.1, 1.48), (-0.26, 1.4))
    sprite.polygon([(u, v * tall) for u, v in torso], top, PERSON)
    _head(canvas, sprite, (0.0, 1.6 * tall), skin, PERSON)


def _head(canvas: Canvas, sprite: Sprite, center: tuple[float, float], skin: Color, label: int) -> None:
    hair = shaded((70, 50, 36), canvas.uniform((0.3, 1.6)))
    sprite.disc(center, 0.14, hair, label)
    sprite.disc((center[0] + 0.02, center[1] - 0.04), 0.1, skin)


def draw_bicycle(canvas: Canvas, palette: Palette, x: float, z: float, ridden: bool) -> None:
    """A bicycle from the side, parked or with its rider; its label fills wheels and frame."""
    sprite, color = canvas.sprite(x, z, canvas.chance(0.5)), canvas.pick(palette.bicycle)
    hull = ((-0.6, 0.36), (-0.22, 0.98), (-0.08, 0.98), (0.38, 0.92), (0.62, 0.36))
    sprite.polygon(hull, None, BICYCLE)
    sprite.ellipse((0, 0.02), (0.95, 0.05), (54, 54, 58))
    for hub in (-0.6, 0.62):
        sprite.disc((hub, 0.38), 0.4, None, BICYCLE)
        sprite.ring((hub, 0.38), 0.37, 0.07, TYRE)
        sprite.disc((hub, 0.38), 0.06, (130, 130, 134))
    for frame in (((-0.6, 0.38), (-0.2, 0.82), (0.42, 0.82), (0.02, 0.36), (-0.2, 0.82)), ((-0.6, 0.38), (0.02, 0.36))):
        sprite.line(frame, 0.07, color, BICYCLE)
    sprite.line(((0.62, 0.38), (0.4, 1.0), (0.5, 1.12)), 0.07, color, BICYCLE)
    sprite.line(((-0.2, 0.8), (-0.22, 0.98)), 0.06, TYRE, BICYCLE)
    sprite.line(((-0.36, 1.0), (-0.08, 1.0)), 0.09, TYRE, BICYCLE)
    if ridden:
        _draw_rider(canvas, palette, sprite, (-0.2, 1.02), (0.46, 1.1), (0.04, 0.3))


def draw_motorcycle(canvas: Canvas, palette: Palette, x: float, z: float, ridden: bool) -> None:
    """A motorcycle from the side, parked or with its rider: fat wheels, tank, seat, engine and fairing."""
    sprite, color = canvas.sprite(x, z, canvas.chance(0.5)), canvas.pick(palette.motorcycle)
    sprite.ellipse((0, 0.02), (1.15, 0.07), (54, 54, 58))
    for hub in (-0.74, 0.78):
        sprite.disc((hub, 0.36), 0.38, TYRE, MOTORCYCLE)
        sprite.disc((hub, 0.36), 0.19, (150, 150, 154))
    engine = ((-0.5, 0.22), (0.42, 0.22), (0.5, 0.62), (-0.5, 0.62))
    sprite.polygon(engine, (84, 84, 90), MOTORCYCLE)
    sprite.line(((-0.95, 0.3), (0.1, 0.26)), 0.1, (176, 176, 180), MOTORCYCLE)
    body = ((-1.05, 0.86), (-0.9, 0.66), (0.3, 0.56), (0.82, 0.7), (0.78, 1.1), (0.5, 1.14), (0.36, 1.0), (-0.1, 0.92))
    sprite.polygon(body, color, MOTORCYCLE)
    sprite.polygon(((-1.0, 0.88), (-0.1, 0.84), (-0.08, 0.96), (-0.95, 1.0)), TYRE, MOTORCYCLE)
    sprite.line(((0.78, 0.36), (0.6, 1.1)), 0.09, (150, 150, 154), MOTORCYCLE)
    sprite.line(((0.6, 1.12), (0.38, 1.22)), 0.07, TYRE, MOTORCYCLE)
    sprite.polygon(((0.62, 1.1), (0.84, 1.0), (0.56, 1.36)), (176, 196, 206), MOTORCYCLE)
    sprite.disc((0.84, 0.92), 0.1, (255, 250, 215), MOTORCYCLE)
    if ridden:
        _draw_rider(canvas, palette, sprite, (-0.34, 0.96), (0.4, 1.2), (-0.02, 0.3))


def _draw_rider(
    canvas: Canvas,
    palette: Palette,
    sprite: Sprite,
    seat: tuple[float, float],
    hands: tuple[float, float],
    foot: tuple[float, float],
) -> None:
    """A rider on a saddle: bent leg, leaning back, arms to the handlebar, helmet."""
    top, trousers, skin = canvas.pick(palette.clothes), canvas.pick(palette.clothes), canvas.pick(palette.skin)
    helmet = canvas.pick((WHITE, RED, BLUE, YELLOW, (40, 40, 44)))
    knee = ((seat[0] + foot[0]) / 2 + 0.34, (seat[1] + foot[1]) / 2 + 0.16)
    sprite.line((seat, knee, foot, (foot[0] + 0.16, foot[1])), 0.17, trousers, RIDER)
    shoulder = (seat[0] + 0.24, seat[1] + 0.62)
    back = (
        (seat[0] - 0.2, seat[1] - 0.06), (seat[0] + 0.22, seat[1] - 0.06), (shoulder[0] + 0.18, shoulder[1] - 0.1),
        (shoulder[0] + 0.08, shoulder[1] + 0.06), (shoulder[0] - 0.16, shoulder[1] + 0.02),
    )  # fmt: skip
    sprite.polygon(back, top, RIDER)
    sprite.line((shoulder, ((shoulder[0] + hands[0]) / 2, hands[1] + 0.1), hands), 0.12, shaded(top, 0.8), RIDER)
    head = (shoulder[0] + 0.1, shoulder[1] + 0.22)
    sprite.disc(head, 0.17, helmet, RIDER)
    sprite.disc((head[0] + 0.06, head[1] - 0.06), 0.09, skin)


def draw_tree(canvas: Canvas, palette: Palette, x: float, z: float, scale: float = 1.0) -> None:
    """A tree: trunk and a crown of leaf clumps, darker below and lighter above."""
    sprite, color, trunk = canvas.sprite(x, z), canvas.pick(palette.vegetation), canvas.pick(palette.trunk)
    crown, radius = scale * canvas.uniform((3.6, 5.2)), scale * canvas.uniform((1.3, 2.1))
    sprite.ellipse((0, 0.0), (radius, 0.12), (56, 58, 52))
    sprite.polygon(((-0.16, 0), (0.16, 0), (0.1, crown), (-0.1, crown)), trunk, VEGETATION)
    _clumps(canvas, sprite, color, (0.0, crown), (radius, radius * 1.05), 13)


def draw_bush(canvas: Canvas, palette: Palette, x: float, z: float, height: float) -> None:
    """A bush of leaf clumps down to the ground."""
    sprite, color = canvas.sprite(x, z), canvas.pick(palette.vegetation)
    sprite.ellipse((0, height * 0.35), (height * 0.8, height * 0.35), shaded(color, 0.7), VEGETATION)
    _clumps(canvas, sprite, color, (0.0, height * 0.55), (height * 0.75, height * 0.42), 7)


def _clumps(
    canvas: Canvas, sprite: Sprite, color: Color, center: tuple[float, float], axes: tuple[float, float], count: int
) -> None:
    draws = canvas.rng.random((count, 3)) * 2 - 1
    for side, rise, size in sorted(draws.tolist(), key=lambda draw: draw[1]):
        reach = (1 - 0.45 * rise * rise) * axes[0]
        spot = (center[0] + 0.75 * side * reach, center[1] + 0.8 * rise * axes[1])
        tone = 0.84 + 0.26 * rise + 0.1 * size
        sprite.disc(spot, (0.42 + 0.1 * size) * axes[1], shaded(color, tone), VEGETATION)


def draw_pole(canvas: Canvas, palette: Palette, x: float, z: float, kind: str) -> None:
    """A pole that is bare ("post") or carries a "lamp", a traffic "light" or a traffic "sign"."""
    sprite, color = canvas.sprite(x, z, mirrored=x > 0), canvas.pick(palette.pole)
    height = {"post": 1.4, "lamp": 6.5, "light": 3.3, "sign": 2.5}[kind]
    half = {"post": 0.15, "lamp": 0.18, "light": 0.17, "sign": 0.14}[kind]
    sprite.line(((0, 0), (0, height)), 2 * half, color, POLE)
    sprite.line(((-half / 2, 0), (-half / 2, height)), half / 3, shaded(color, 1.25))
    if kind == "lamp":
        sprite.line(((0, height), (0.5, height + 0.35), (1.7, height + 0.35)), 0.14, color, POLE)
        sprite.line(((1.3, height + 0.25), (2.0, height + 0.25)), 0.16, shaded(color, 1.5), POLE)
    elif kind == "light":
        _traffic_light(canvas, sprite, height)
    elif kind == "sign":
        _traffic_sign(canvas, sprite, height)


def _traffic_light(canvas: Canvas, sprite: Sprite, height: float) -> None:
    lit = canvas.count((0, 2))
    sprite.polygon(rectangle(-0.42, height - 0.3, 0.42, height + 1.5), (236, 226, 190), LIGHT)
    sprite.polygon(rectangle(-0.36, height - 0.24, 0.36, height + 1.44), (30, 30, 32))
    lamps = (((44, 240, 110), 0.05), ((255, 200, 40), 0.6), ((255, 40, 36), 1.15))
    for position, (lamp, rise) in enumerate(lamps):
        sprite.disc((0, height + rise), 0.24, lamp if position == lit else shaded(lamp, 0.25))


def _traffic_sign(canvas: Canvas, sprite: Sprite, height: float) -> None:
    kind = canvas.count((0, 4))
    if kind == 0:
        sprite.disc((0, height), 0.55, RED, SIGN)
        sprite.disc((0, height), 0.36, WHITE)
        sprite.line(((-0.16, height), (0.16, height)), 0.14, (40, 40, 44))
    elif kind == 1:
        sprite.polygon(((-0.62, height - 0.42), (0.62, height - 0.42), (0, height + 0.64)), RED, SIGN)
        sprite.polygon(((-0.34, height - 0.26), (0.34, height - 0.26), (0, height + 0.32)), WHITE)
    elif kind == 2:
        sprite.polygon(rectangle(-0.5, height - 0.5, 0.5, height + 0.5), BLUE, SIGN)
        sprite.polygon(((-0.3, height - 0.3), (0.3, height - 0.3), (0, height + 0.34)), WHITE)
    elif kind == 3:
        sprite.polygon(((-0.64, height), (0, height - 0.64), (0.64, height), (0, height + 0.64)), WHITE, SIGN)
        sprite.polygon(((-0.46, height), (0, height - 0.46), (0.46, height), (0, height + 0.46)), YELLOW)
    else:
        sprite.disc((0, height), 0.56, WHITE, SIGN)
        sprite.disc((0, height), 0.5, RED)
        sprite.line(((-0.3, height), (0.3, height)), 0.16, WHITE)
