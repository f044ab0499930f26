"""Decoding of image and label files, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_uda.data.datasets.base import DatasetError, Problem

Array = npt.NDArray[np.uint8]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_COLOR_TYPES = {0: "grey", 2: "RGB colour", 3: "palette", 4: "grey with alpha", 6: "RGBA colour"}
_GREY_SCALE = {1: 1, 2: 85, 4: 17}  # Pillow stretches grey of less than 8 bits to 0-255 (of 1 bit: to 0-1)
_JPEG_SIGNATURE, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_TAIL_BYTES = 1 << 16
_EXIF_ORIENTATION = 0x0112
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken files


def read_image(path: Path) -> Array:
    """Decodes an image file; alpha is dropped, grey repeated, EXIF orientation ignored.

    Args:
        path: PNG, JPEG, BMP, WebP or TIFF file.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DatasetError: If the file is missing, empty, cut off, no image, or a TIFF that asks to be turned.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: can't be read ({error}). Restore the file or its permissions.") from error
    _require_whole(path, data)
    _refuse_turned_tiff(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise DatasetError(_not_an_image(path, data))
    return cast(Array, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def read_label(path: Path) -> Array:
    """Decodes a label map without touching the stored numbers: palette files give indices, not colours.

    Args:
        path: Single-channel PNG file: grey of 1 to 16 bits, or palette.

    Returns:
        uint8 (H, W) of raw ids.

    Raises:
        DatasetError: If the file is missing, broken, of another kind, or holds ids above 255.
    """
    try:
        with path.open("rb") as file:
            scale = _grey_scale(path, file)
            label = np.array(Image.open(file))
    except _UNREADABLE as error:
        raise DatasetError(
            f"{path}: label can't be decoded ({error}). Copy the file again or delete the pair."
        ) from error
    if label.dtype.itemsize > 1 and label.max() > 255:
        raise DatasetError(
            f"{path}: found 16-bit ids up to {label.max()}, expected class ids below 256. Give class ids, not instance "
            "ids or depth."
        )
    ids: Array = label.astype(np.uint8)
    return ids if scale == 1 else ids // np.uint8(scale)


def check_image_file(path: Path) -> tuple[int, int]:
    """Reads an image's header and tests that the file is whole; PNG and JPEG files aren't decoded.

    Args:
        path: PNG, JPEG, BMP, WebP or TIFF file.

    Returns:
        Height and width.

    Raises:
        DatasetError: If the file is missing, empty, cut off, no image, or a TIFF that asks to be turned.
    """
    try:
        ends = _read_ends(path)
    except OSError as error:
        raise DatasetError(f"{path}: can't be read ({error}). Restore the file or its permissions.") from error
    if not ends.startswith((_PNG_SIGNATURE, _JPEG_SIGNATURE)):
        height, width, _ = read_image(path).shape
        return height, width
    _require_whole(path, path.read_bytes() if _is_cut_off(ends) else ends)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _UNREADABLE as error:
        raise DatasetError(_not_an_image(path, ends)) from error


def file_problem(path: Path | str, error: Exception) -> Problem:
    """A problem from an error whose message may begin with the file's path."""
    text = str(error) if isinstance(error, DatasetError) else f"{type(error).__name__}: {error}"
    return Problem(str(path), text.removeprefix(f"{path}: "))


def size_mismatch(label_size: Sequence[int], image_size: Sequence[int] | None) -> str | None:
    """Says that label and image differ in size; `None` if they don't, or if the image's size isn't known.

    Args:
        label_size: Height and width of the label map.
        image_size: Height and width of the image.
    """
    if image_size is None or tuple(label_size) == tuple(image_size):
        return None
    return (
        f"label is {label_size[0]} x {label_size[1]} (height x width), its image {image_size[0]} x {image_size[1]}; "
        "expected equal sizes. Export the label again at the image's size, or resize it with nearest neighbour."
    )


def unlisted_ids(counts: npt.NDArray[np.integer], class_ids: Mapping[int, str | None]) -> str | None:
    """Says which raw ids a class map doesn't list; `None` if it lists all that occur.

    Args:
        counts: (256,), pixels of each raw id.
        class_ids: Class name of each raw id, `None` for void.
    """
    unlisted = [int(i) for i in np.flatnonzero(counts) if int(i) not in class_ids]
    if not unlisted:
        return None
    pixels = ", ".join(f"{i}: {counts[i]}" for i in unlisted)
    return (
        f"found ids {unlisted} (pixels: {pixels}), expected only {_ranges(class_ids)}. Add them to `class_map` "
        "(null for void) or to `ignore_ids`, or mend the label."
    )


def _ranges(ids: Iterable[int]) -> str:
    runs = groupby(enumerate(sorted(ids)), key=lambda pair: pair[1] - pair[0])
    ends = [[i for _, i in run] for _, run in runs]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)


def _read_ends(path: Path) -> bytes:
    """The first bytes of a file and its last 64 KiB, or all of it if shorter."""
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(max(len(head), path.stat().st_size - _TAIL_BYTES))
        return head + file.read()


def _is_cut_off(data: bytes) -> bool:
    """Whether a PNG or JPEG lacks its end marker; a thumbnail's end marker, before the last scan, doesn't count."""
    if data.startswith(_PNG_SIGNATURE):
        return _PNG_END not in data
    if data.startswith(_JPEG_SIGNATURE):
        end = data.rfind(_JPEG_END)
        return end < 0 or _JPEG_SCAN in data[end:]
    return False


def _require_whole(path: Path, data: bytes) -> None:
    if not data:
        raise DatasetError(f"{path}: empty file (0 bytes), expected an image. Copy it again or delete it.")
    if _is_cut_off(data):
        raise DatasetError(f"{path}: the file is cut off (its end marker is missing). Copy it again or delete it.")


def _not_an_image(path: Path, data: bytes) -> str:
    return (
        f"{path}: can't be decoded as an image (begins with {data[:8]!r}); expected 8- or 16-bit PNG, JPEG, BMP, WebP "
        "or TIFF. Convert it, copy it again or delete it."
    )


def _refuse_turned_tiff(path: Path, data: bytes) -> None:
    if not data.startswith((b"II", b"MM")):
        return
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _UNREADABLE as error:
        raise DatasetError(_not_an_image(path, data)) from error
    if orientation != 1:
        raise DatasetError(
            f"{path}: TIFF with orientation tag {orientation}, expected 1: decoders would turn the image but not its "
            "label. Save it as PNG."
        )


def _grey_scale(path: Path, file: BinaryIO) -> int:
    """Checks a label's PNG header, goes back to the start, and says by how much Pillow stretches its numbers."""
    header = file.read(26)
    file.seek(0)
    if len(header) < 26 or not header.startswith(_PNG_SIGNATURE):
        raise DatasetError(
            f"{path}: label isn't a PNG file ({'empty' if not header else f'begins with {header[:8]!r}'}); expected a "
            "single-channel PNG of class ids. Save it again or copy it again."
        )
    depth, color_type = header[24], header[25]
    if color_type not in (0, 3):
        kind = _PNG_COLOR_TYPES.get(color_type, f"unknown (type {color_type})")
        raise DatasetError(
            f"{path}: label is a PNG of kind {kind}; expected a single-channel PNG (grey or palette) whose numbers are "
            "class ids. Convert the colours to ids."
        )
    return _GREY_SCALE.get(depth, 1) if color_type == 0 else 1
