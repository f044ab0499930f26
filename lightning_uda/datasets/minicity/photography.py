"""From a clean drawing to a photograph: surface texture, light, optics, sensor and compression."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from lightning_uda.datasets.minicity.style import Photography, Range
from lightning_uda.label_spaces import CITYSCAPES_CLASSES

REFERENCE_HEIGHT = 128
"""Rows of the picture for which blur is given in pixels."""

_TEXTURE: dict[str, tuple[float, float]] = {
    "road": (0.06, 0.05), "sidewalk": (0.08, 0.05), "building": (0.06, 0.08), "wall": (0.10, 0.10),
    "fence": (0.08, 0.06), "pole": (0.05, 0.05), "vegetation": (0.17, 0.18), "terrain": (0.18, 0.16),
    "sky": (0.0, 0.03), "person": (0.08, 0.08), "rider": (0.08, 0.08), "car": (0.03, 0.12), "truck": (0.03, 0.10),
    "bus": (0.03, 0.10), "train": (0.03, 0.10), "motorcycle": (0.08, 0.08), "bicycle": (0.08, 0.06),
}  # fmt: skip
"""Amplitude of fine and of coarse texture per class."""

_AMPLITUDES = np.zeros((2, 256), dtype=np.float32)
for _name, _amplitudes in _TEXTURE.items():
    _AMPLITUDES[:, CITYSCAPES_CLASSES.index(_name)] = _amplitudes

Image = npt.NDArray[np.float32]


def photograph(
    image: npt.NDArray[np.uint8], label: npt.NDArray[np.uint8], photography: Photography, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Takes a picture of a drawing.

    Args:
        image: Drawing, uint8 (H, W, 3) RGB.
        label: Its train ids, uint8 (H, W); they choose the texture.
        photography: Strengths; what has none is left out.
        rng: Source of all randomness.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    light = image.astype(np.float32)
    if photography.texture[1] > 0:
        light *= _texture(label, _uniform(rng, photography.texture), rng)[..., None]
    if (field := _light_field(label.shape, photography, rng)) is not None:
        light *= field[..., None]
    light = _develop(light, photography, rng)
    light = _blur(light, photography, rng)
    if (noise := _uniform(rng, photography.noise)) > 0:
        sensor = rng.standard_normal(light.shape, dtype=np.float32)
        light += sensor * (noise * (0.5 + light / 255))
    picture = np.clip(light, 0, 255).astype(np.uint8)
    if photography.jpeg_quality is not None:
        quality = int(rng.integers(photography.jpeg_quality[0], photography.jpeg_quality[1] + 1))
        # RGB goes in and comes out as if it were BGR: the round trip keeps the order.
        _, code = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), dtype=np.uint8)
    return picture


def _uniform(rng: np.random.Generator, bounds: Range) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()


def _coarse_noise(shape: tuple[int, ...], cells: int, rng: np.random.Generator) -> Image:
    """Smooth noise (H, W) with about `cells` bumps from top to bottom."""
    height, width = shape[:2]
    grid = rng.standard_normal((cells, max(2, cells * width // height)), dtype=np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _texture(label: npt.NDArray[np.uint8], strength: float, rng: np.random.Generator) -> Image:
    """Factor (H, W) around 1 that makes surfaces uneven."""
    height = label.shape[0]
    fine = _coarse_noise(label.shape, max(2, int(height * 0.6)), rng)
    coarse = _coarse_noise(label.shape, 14, rng)
    field = 1 + strength * (_AMPLITUDES[0][label] * fine + _AMPLITUDES[1][label] * coarse)
    return np.asarray(np.maximum(field, 0.1), dtype=np.float32)


def _light_field(shape: tuple[int, ...], photography: Photography, rng: np.random.Generator) -> Image | None:
    """Factor (H, W) of light that differs over the picture: gradient, vignette and a cast shadow."""
    height, width = shape[:2]
    tilt, corner, shadow = (
        _uniform(rng, bounds) for bounds in (photography.gradient, photography.vignette, photography.shadow)
    )
    if not (tilt or corner or shadow):
        return None
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = rng.random() * 2 * np.pi
    field = (1 + tilt * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)) * (
        1 - corner * (x * x + y * y) / 2
    )
    if shadow:
        field *= 1 - shadow * _shadow_mask(height, width, rng)
    return np.asarray(field, dtype=np.float32)


def _shadow_mask(height: int, width: int, rng: np.random.Generator) -> Image:
    """Soft shadow (H, W), 0-1, of houses over the lower half of the picture."""
    mask = np.zeros((height, width), dtype=np.uint8)
    left, reach, slant = rng.random(3)
    start = (left * 1.4 - 0.4) * width
    stop, lean = start + (0.3 + 0.6 * reach) * width, (slant - 0.5) * width
    top = height * 0.5
    corners = np.array([(start, top), (stop, top), (stop + lean, height), (start + lean, height)], dtype=np.int32)
    cv2.fillPoly(mask, [corners], 255)
    size = max(3, height // 16 * 2 + 1)
    return np.asarray(cv2.blur(mask, (size, size)), dtype=np.float32) / np.float32(255)


def _develop(light: Image, photography: Photography, rng: np.random.Generator) -> Image:
    """Exposure, colour cast, gamma and saturation of float (H, W, 3), 0-255."""
    exposure, gamma, saturation = (
        _uniform(rng, bounds) for bounds in (photography.exposure, photography.gamma, photography.saturation)
    )
    cast = 1 + photography.cast * (2 * rng.random(3) - 1)
    if exposure == gamma == saturation == 1 and not photography.cast:
        return light
    grey = np.full((3, 3), (1 - saturation) / 3) + np.eye(3) * saturation
    light = np.asarray(
        cv2.transform(light, (exposure * cast[:, None] * grey / 255).astype(np.float32)), dtype=np.float32
    )
    if gamma != 1:
        np.clip(light, 0, 1, out=light)
        light = np.asarray(cv2.pow(light, gamma), dtype=np.float32)
    return light * 255


def _blur(light: Image, photography: Photography, rng: np.random.Generator) -> Image:
    """Defocus and sideways motion of float (H, W, 3)."""
    scale = light.shape[0] / REFERENCE_HEIGHT
    sigma, moving = _uniform(rng, photography.blur) * scale, rng.random() < photography.motion
    if sigma > 0.15:
        light = np.asarray(cv2.GaussianBlur(light, (0, 0), sigma), dtype=np.float32)
    if moving:
        light = np.asarray(cv2.blur(light, (max(2, round(3 * scale)), 1)), dtype=np.float32)
    return light
