"""Cars, trucks, buses and trains."""

from __future__ import annotations

from lightning_uda.datasets.minicity.canvas import Box, Canvas, Point2, rectangle, shaded
from lightning_uda.datasets.minicity.style import Color, Palette
from lightning_uda.label_spaces import CITYSCAPES_CLASSES

CAR, TRUCK, BUS, TRAIN = (CITYSCAPES_CLASSES.index(name) for name in ("car", "truck", "bus", "train"))
TAIL_LIGHT: Color = (220, 40, 34)
HEAD_LIGHT: Color = (255, 250, 215)
DARK: Color = (34, 35, 38)
SIZES = {"car": (4.2, 1.55, 1.8), "truck": (7.5, 3.4, 2.5), "bus": (10.5, 3.1, 2.55), "train": (24.0, 3.6, 2.6)}
"""Length, height and width in metres."""

_CAR_PROFILES: tuple[tuple[float, float, float, float], ...] = (
    (0.14, 0.30, 0.60, 0.78),  # saloon
    (0.02, 0.10, 0.58, 0.76),  # hatchback
    (0.01, 0.04, 0.66, 0.82),  # estate or van
)
"""Where rear window foot, roof start, roof end and windscreen foot lie along the length."""


def draw_car(canvas: Canvas, palette: Palette, box: Box) -> None:
    """A car: body, cabin, four windows, wheels, lights and number plate."""
    color, glass = canvas.pick(palette.car), canvas.pick(palette.window)
    foot, start, stop, nose = _CAR_PROFILES[canvas.count((0, len(_CAR_PROFILES) - 1))]
    box.shadow()
    cabin = ((foot, 0.6), (start, 1.0), (stop, 1.0), (nose, 0.6))
    box.on_side(((0, 0.2), (0, 0.58), *cabin, (1, 0.52), (1, 0.2)), color, CAR)
    middle = (start + stop) / 2
    box.on_side(((foot + 0.06, 0.63), (start + 0.03, 0.94), (middle - 0.01, 0.94), (middle - 0.01, 0.63)), glass)
    box.on_side(((middle + 0.02, 0.63), (middle + 0.02, 0.94), (stop - 0.02, 0.94), (nose - 0.06, 0.63)), glass)
    for along in (0.19, 0.81):
        box.wheel(along, 0.33, CAR)
    roof = ((start, 1.0, 0.0), (stop, 1.0, 0.0), (stop, 1.0, 1.0), (start, 1.0, 1.0))
    box.face(roof, shaded(color, 1.12), CAR)
    if box.end is not None:
        _car_end(box, color, glass, (foot, start) if box.end < 0.5 else (nose, stop))


def _car_end(box: Box, color: Color, glass: Color, window: Point2) -> None:
    """The rear or the front of a car, with its window leaning from `window[0]` up to `window[1]`."""
    assert box.end is not None
    low, high = window
    lid = ((box.end, 0.6, 0.0), (box.end, 0.6, 1.0), (low, 0.62, 1.0), (low, 0.62, 0.0))
    box.face(lid, shaded(color, 1.1), CAR)
    frame = ((low, 0.6, 0.0), (low, 0.6, 1.0), (high, 1.0, 1.0), (high, 1.0, 0.0))
    box.face(frame, shaded(color, box.end_light), CAR)
    pane = ((low, 0.65, 0.09), (low, 0.65, 0.91), (high, 0.94, 0.88), (high, 0.94, 0.12))
    box.face(pane, glass)
    for left in (0.04, 0.78):
        box.on_end(rectangle(left, 0.0, left + 0.18, 0.3), DARK, CAR)
    box.on_end(rectangle(0.0, 0.16, 1.0, 0.6), color, CAR)
    box.on_end(rectangle(0.0, 0.16, 1.0, 0.26), DARK)
    light = TAIL_LIGHT if box.end < 0.5 else HEAD_LIGHT
    for left in (0.03, 0.79):
        box.on_end(rectangle(left, 0.42, left + 0.18, 0.56), light)
    box.on_end(rectangle(0.36, 0.3, 0.64, 0.42), (225, 225, 220) if box.end < 0.5 else DARK)


def draw_truck(canvas: Canvas, palette: Palette, box: Box) -> None:
    """A truck: a plain load box without windows behind a lower cab, on a dark frame with three axles."""
    load, cab, glass = canvas.pick(palette.truck), canvas.pick(palette.truck), canvas.pick(palette.window)
    box.shadow()
    box.on_side(rectangle(0.0, 0.12, 1.0, 0.26), DARK, TRUCK)
    box.on_side(((0.74, 0.14), (0.74, 0.74), (0.94, 0.74), (1.0, 0.45), (1.0, 0.14)), cab, TRUCK)
    box.on_side(((0.8, 0.46), (0.8, 0.68), (0.92, 0.68), (0.96, 0.46)), glass)
    if box.end is not None and box.end > 0.5:
        box.on_end(rectangle(0.0, 0.24, 1.0, 1.0), load, TRUCK, inset=0.3)
        _truck_front(box, cab, glass)
    box.on_side(rectangle(0.0, 0.25, 0.7, 1.0), load, TRUCK)
    for along in (0.1, 0.25, 0.4, 0.55):
        box.on_side(rectangle(along, 0.27, along + 0.012, 0.98), shaded(load, 0.72))
    box.on_side(rectangle(0.0, 0.9, 0.7, 0.95), shaded(cab, 0.85))
    for along in (0.1, 0.26, 0.86):
        box.wheel(along, 0.5, TRUCK)
    if box.end is not None and box.end < 0.5:
        _truck_rear(box, load)


def _truck_front(box: Box, cab: Color, glass: Color) -> None:
    box.on_end(rectangle(0.02, 0.06, 0.98, 0.74), cab, TRUCK)
    box.on_end(rectangle(0.08, 0.44, 0.92, 0.68), glass)
    box.on_end(rectangle(0.18, 0.16, 0.82, 0.36), DARK)
    for left in (0.05, 0.83):
        box.on_end(rectangle(left, 0.14, left + 0.12, 0.22), HEAD_LIGHT)


def _truck_rear(box: Box, load: Color) -> None:
    box.on_end(rectangle(0.05, 0.05, 0.95, 0.26), DARK, TRUCK)
    box.on_end(rectangle(0.0, 0.22, 1.0, 1.0), shaded(load, 0.8), TRUCK)
    for left in (0.05, 0.52):
        box.on_end(rectangle(left, 0.27, left + 0.43, 0.95), load)
        box.on_end(rectangle(left + 0.18, 0.27, left + 0.22, 0.95), shaded(load, 0.6))
    for left in (0.06, 0.8):
        box.on_end(rectangle(left, 0.11, left + 0.14, 0.18), TAIL_LIGHT)


def draw_bus(canvas: Canvas, palette: Palette, box: Box) -> None:
    """A bus: one body down to the wheels, a row of big windows, a stripe, and a lit sign in front."""
    color, trim, glass = canvas.pick(palette.bus), canvas.pick(palette.bus), canvas.pick(palette.window)
    box.shadow()
    box.on_side(rectangle(0.0, 0.09, 1.0, 1.0), color, BUS)
    box.on_side(rectangle(0.0, 0.24, 1.0, 0.36), trim)
    box.on_side(rectangle(0.02, 0.46, 0.98, 0.86), shaded(color, 0.55))
    for window in range(7):
        box.on_side(rectangle(0.03 + window * 0.136, 0.49, 0.145 + window * 0.136, 0.84), glass)
    box.on_side(rectangle(0.9, 0.12, 0.97, 0.84), shaded(glass, 0.8))
    for along in (0.2, 0.78):
        box.wheel(along, 0.48, BUS)
    if box.end is None:
        return
    box.on_end(rectangle(0.04, 0.02, 0.2, 0.12), DARK, BUS)
    box.on_end(rectangle(0.8, 0.02, 0.96, 0.12), DARK, BUS)
    box.on_end(((0, 0.09), (1, 0.09), (1, 0.94), (0.94, 1), (0.06, 1), (0, 0.94)), color, BUS)
    box.on_end(rectangle(0.0, 0.24, 1.0, 0.34), trim)
    if box.end < 0.5:
        box.on_end(rectangle(0.12, 0.56, 0.88, 0.84), glass)
        box.on_end(rectangle(0.25, 0.36, 0.75, 0.48), shaded(color, 0.6))
    else:
        box.on_end(rectangle(0.06, 0.38, 0.94, 0.82), glass)
        box.on_end(rectangle(0.49, 0.38, 0.51, 0.82), shaded(color, 0.6))
        box.on_end(rectangle(0.15, 0.86, 0.85, 0.96), DARK)
        box.on_end(rectangle(0.22, 0.88, 0.78, 0.94), (250, 170, 50))
    for left in (0.04, 0.84):
        box.on_end(rectangle(left, 0.14, left + 0.12, 0.22), TAIL_LIGHT if box.end < 0.5 else HEAD_LIGHT)


def draw_train(canvas: Canvas, palette: Palette, box: Box) -> None:
    """A tram: long jointed body in two colours, a window band, doors, a skirt to the rails and a current collector."""
    color, lower, glass = canvas.pick(palette.train), canvas.pick(palette.train), canvas.pick(palette.window)
    box.shadow()
    for along in (0.3, 0.36):
        box.face(((along, 1.0, 0.5), (along + 0.03, 1.16, 0.5), (along + 0.012, 1.16, 0.5)), DARK, TRAIN)
    box.on_side(rectangle(0.0, 0.04, 1.0, 1.0), color, TRAIN)
    box.on_side(rectangle(0.0, 0.04, 1.0, 0.12), DARK)
    box.on_side(rectangle(0.0, 0.12, 1.0, 0.4), lower)
    box.on_side(rectangle(0.0, 0.93, 1.0, 1.0), shaded(color, 0.6))
    box.on_side(rectangle(0.01, 0.48, 0.99, 0.8), shaded(glass, 0.75))
    for section in range(3):
        start = section / 3
        for door in (0.08, 0.22):
            box.on_side(rectangle(start + door, 0.12, start + door + 0.045, 0.85), (222, 222, 216))
            box.on_side(rectangle(start + door + 0.006, 0.42, start + door + 0.039, 0.8), glass)
        if section:
            box.on_side(rectangle(start - 0.012, 0.1, start + 0.012, 0.98), DARK)
    if box.end is None:
        return
    nose = ((0.02, 0.04), (0.98, 0.04), (1, 0.5), (0.86, 1), (0.14, 1), (0, 0.5))
    box.on_end(rectangle(0.0, 0.04, 1.0, 1.0), shaded(color, 0.72), TRAIN)
    box.on_end(nose, color)
    box.on_end(((0.02, 0.04), (0.98, 0.04), (1, 0.4), (0, 0.4)), lower)
    box.on_end(rectangle(0.02, 0.04, 0.98, 0.12), DARK)
    box.on_end(((0.06, 0.46), (0.94, 0.46), (0.84, 0.82), (0.16, 0.82)), shaded(glass, 0.8))
    box.on_end(rectangle(0.3, 0.86, 0.7, 0.95), (250, 190, 60))
    for left in (0.12, 0.7):
        box.on_end(rectangle(left, 0.24, left + 0.18, 0.33), HEAD_LIGHT)
    box.on_end(rectangle(0.42, 0.2, 0.58, 0.36), DARK)
