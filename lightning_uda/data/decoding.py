"""Decoding of image and label files, and what can be wrong with them."""

from __future__ import annotations

import io
import math
import os
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import cv2
import numpy as np
import numpy.typing as npt
from kornia_rs import io as kornia_io
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from lightning_uda.data.dataset import DatasetError, Problem, SizeLimit, UnreadableFileError

Array = npt.NDArray[np.uint8]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_COLOR_TYPES = {0: "grey", 2: "RGB colour", 3: "palette", 4: "grey with alpha", 6: "RGBA colour"}
_PNG_CHANNELS = {0: ("mono", 1), 2: ("rgb", 3), 3: ("mono", 1)}  # of the colour types that `decode_png` reads
_MOST_SHRINKING = 1032  # what deflate takes 1 byte for, at best
_GREY_SCALE = {1: 1, 2: 85, 4: 17}  # Pillow stretches grey of less than 8 bits to 0-255 (of 1 bit: to 0-1)
_JPEG_SIGNATURE, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_EQUAL_SIZES = "expected equal sizes. Export the label again at the image's size, or resize it with nearest neighbour."
_FILE_BITS = 16  # of image files of more than 8
_HEAD_BYTES, _TAIL_BYTES = 32, 1 << 16
_EXIF_ORIENTATION = 0x0112
_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error)  # what broken files raise
_HEADERS: dict[bytes, type[JpegImageFile | TiffImageFile | BmpImageFile]] = {  # not `Image.open`, for its own limit
    _JPEG_SIGNATURE: JpegImageFile,
    b"II": TiffImageFile,
    b"MM": TiffImageFile,
    b"BM": BmpImageFile,
}
_OTHER_LABELS = (b"II", b"MM", b"BM")  # beginnings of label maps that Pillow reads
_LABEL_MODES = ("1", "L", "P", "I;16", "I;16B")  # Pillow's names for a single channel of at most 16 bits
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_DEFAULT = SizeLimit()


def read_file(path: Path, limit: SizeLimit = _DEFAULT, size: int = -1) -> bytes:
    """The bytes of a file, or its first `size` ones.

    Raises:
        UnreadableFileError: If it can't be read or is too long, or is none, as a named pipe, on which one would wait.
    """
    try:
        with _open(path, limit) as file:
            return file.read(size)
    except OSError as error:
        raise UnreadableFileError(_unreadable(path, error)) from error


def require_file(path: Path) -> int:
    """Checks that a path is that of a file, or of a link to one, and gives its length in bytes.

    Opening a named pipe waits for somebody who writes into it, and a device may have no end.

    Raises:
        UnreadableFileError: If it is anything else.
        OSError: If it isn't there.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise UnreadableFileError(f"{path}: this is {kind}, expected a file. Take it away.")
    return found.st_size


def read_image(path: Path, limit: SizeLimit = _DEFAULT, bits: int = 16) -> Array:
    """Decodes an image file; see `decode_image`.

    Raises:
        DatasetError: If the file can't be read, or for what `decode_image` refuses.
    """
    return decode_image(read_file(path, limit), str(path), limit, bits)


def read_label(path: Path, limit: SizeLimit = _DEFAULT) -> Array:
    """Decodes a label map; see `decode_label`.

    Raises:
        DatasetError: If the file can't be read, or for what `decode_label` refuses.
    """
    return decode_label(read_file(path, limit), str(path), limit)


def decode_image(data: bytes, where: str, limit: SizeLimit = _DEFAULT, bits: int = 16) -> Array:
    """Decodes an image; alpha is dropped, grey repeated, EXIF orientation ignored.

    Args:
        data: PNG, JPEG, BMP, WebP or TIFF file.
        where: Path of the file, for messages.
        limit: How large it may be.
        bits: How many bits of a file of 16 bits hold data, such as 12: the highest number they can hold is white.

    Returns:
        uint8 (H, W, 3), RGB; numbers of more than 8 bits are scaled to 8.

    Raises:
        DatasetError: If the file is empty, cut off, no image, too large, a TIFF that asks to be turned, or holds
            numbers of more than `bits` bits.
    """
    image_size(data, where, limit)
    if is_png(data) and (data[24], data[25]) == (8, 2):
        try:
            return decode_png(data)
        except ValueError as error:
            raise UnreadableFileError(f"{where}: damaged PNG ({error}). Copy it again or delete it.") from error
    _refuse_turned_tiff(where, data)
    image = _decode_color(data, where, cv2.IMREAD_ANYDEPTH if bits < _FILE_BITS else 0)
    if image.dtype not in (np.uint8, np.uint16):
        image = _decode_color(data, where, 0)
    if image.dtype == np.uint16:
        if image.max() >> bits:
            raise DatasetError(
                f"{where}: found numbers up to {image.max()}, expected at most {2**bits - 1} in {bits} bits "
                "(`image_bits`). Give the number of bits that the camera has."
            )
        image = (image >> (bits - 8)).astype(np.uint8)
    return cast(Array, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def largest_of_16_bits(path: Path, limit: SizeLimit = _DEFAULT) -> int | None:
    """The largest number in an image file of 16 bits; `None` if the file is of another kind.

    Raises:
        DatasetError: If the file can't be read.
    """
    data = read_file(path, limit)
    image_size(data, str(path), limit)
    image = _decode_color(data, str(path), cv2.IMREAD_ANYDEPTH)
    return int(image.max()) if image.dtype == np.uint16 else None


def _decode_color(data: bytes, where: str, flags: int) -> npt.NDArray[Any]:
    """An image as OpenCV decodes it, (H, W, 3), BGR."""
    try:
        flags |= cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise UnreadableFileError(_not_an_image(where, data))
    return image


def decode_label(data: bytes, where: str, limit: SizeLimit = _DEFAULT) -> Array:
    """Decodes a label map without touching the stored numbers: palette files give indices, not colours.

    Args:
        data: Single-channel PNG, TIFF or BMP file: grey of 1 to 16 bits, or palette.
        where: Path of the file, for messages.
        limit: How large it may be.

    Returns:
        uint8 (H, W) of raw ids.

    Raises:
        DatasetError: If the file is broken, of another kind such as JPEG, which changes ids, too large, a TIFF that
            asks to be turned, or holds ids above 255.
    """
    if data.startswith(_OTHER_LABELS):
        return as_class_ids(_decode_tiff_or_bmp(data, where, limit), where)
    depth, color_type = require_label_png(data, where)
    limit.require_pixels(png_size(data), where)
    try:
        label = decode_png(data) if depth == 8 else np.array(PngImageFile(io.BytesIO(data)))
    except _UNREADABLE as error:
        raise UnreadableFileError(_not_a_label(where, str(error))) from error
    ids = as_class_ids(label, where)
    scale = _GREY_SCALE.get(depth, 1) if color_type == 0 else 1
    return ids if scale == 1 else ids // np.uint8(scale)


def decode_png(data: bytes) -> Array:
    """Decodes a PNG of 8 bits per channel as it is stored, in half the time that OpenCV and Pillow take.

    Args:
        data: PNG file: grey, palette or RGB colour, interlaced or not.

    Returns:
        uint8 (H, W) of grey values or palette indices, or (H, W, 3), RGB.

    Raises:
        ValueError: If the file is of another kind, cut off or damaged.
    """
    if not is_png(data) or data[24] != 8 or data[25] not in _PNG_CHANNELS:
        raise ValueError("no 8-bit PNG in grey, palette or RGB colour")
    size, (mode, channels) = png_size(data), _PNG_CHANNELS[data[25]]
    if math.prod(size) * channels > _MOST_SHRINKING * len(data):  # the decoder panics if there's no memory for it
        raise ValueError(f"too short for {size[0]} x {size[1]} pixels")
    try:
        image = kornia_io.decode_image_png_u8(data, size, mode)
    except Exception as error:  # kornia-rs raises nothing more special
        raise ValueError(str(error)) from error
    return cast(Array, image if channels == 3 else image[:, :, 0])


def decode_first_channel(data: bytes, where: str, limit: SizeLimit = _DEFAULT) -> Array:
    """Decodes the first (red) channel of a three-channel 16-bit label PNG, as SYNTHIA stores classes.

    Args:
        data: PNG file, RGB of 16 bits per channel.
        where: Path of the file, for messages.
        limit: How large it may be.

    Returns:
        uint8 (H, W) of raw ids.

    Raises:
        DatasetError: If the file is broken, of another kind, too large, or holds ids above 255.
    """
    require_rgb16_png(data, where)
    limit.require_pixels(png_size(data), where)
    _require_whole(where, data)
    try:
        channels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # BGR: the first channel is last
    except cv2.error:
        channels = None
    if channels is None:
        raise UnreadableFileError(_not_a_label(where, "damaged PNG"))
    return as_class_ids(channels[:, :, 2], where)


def as_class_ids(label: npt.NDArray[Any], where: str) -> Array:
    """Class ids as uint8, same shape.

    Raises:
        DatasetError: If ids are above 255.
    """
    if label.dtype.itemsize > 1 and label.max() > 255:
        raise DatasetError(
            f"{where}: found 16-bit ids up to {label.max()}, expected class ids below 256. Give class ids, not "
            "instance ids or depth."
        )
    return np.ascontiguousarray(label, dtype=np.uint8)


def require_label_png(head: bytes, where: str) -> tuple[int, int]:
    """Checks by the first 26 bytes that a label map is a single-channel PNG.

    Returns:
        Bit depth and PNG colour type (0 grey, 3 palette).

    Raises:
        DatasetError: If it isn't.
    """
    depth, color_type = _png_kind(head, where)
    if color_type not in (0, 3):
        raise DatasetError(
            f"{where}: label is a PNG of kind {_kind_name(color_type)}; expected a single-channel PNG (grey or "
            "palette) whose numbers are class ids. Convert the colours to ids."
        )
    return depth, color_type


def require_rgb16_png(head: bytes, where: str) -> None:
    """Checks by the first 26 bytes that a label map is a three-channel PNG of 16 bits.

    Raises:
        DatasetError: If it isn't.
    """
    depth, color_type = _png_kind(head, where)
    if (depth, color_type) != (16, 2):
        raise DatasetError(
            f"{where}: label is a PNG of kind {_kind_name(color_type)}, {depth} bits; expected RGB colour of 16 bits "
            "per channel, whose first channel is the class. Take the label as distributed, not a converted copy."
        )


def check_image_file(path: Path, limit: SizeLimit = _DEFAULT) -> tuple[int, int]:
    """Reads an image's header and tests that the file is whole; PNG and JPEG files aren't decoded.

    Args:
        path: PNG, JPEG, BMP, WebP or TIFF file.
        limit: How large it may be.

    Returns:
        Height and width.

    Raises:
        DatasetError: If the file is missing, empty, cut off, no image, too large, or a TIFF that asks to be turned.
    """
    try:
        ends = _read_ends(path, limit)
        if not ends.startswith((_PNG_SIGNATURE, _JPEG_SIGNATURE)):
            height, width, _ = read_image(path, limit).shape
            return height, width
        _require_whole(str(path), read_file(path, limit) if _is_cut_off(ends) else ends)
        with path.open("rb") as file:
            return _header_size(file, ends, str(path), limit)
    except OSError as error:
        raise UnreadableFileError(_unreadable(path, error)) from error


def is_png(head: bytes) -> bool:
    """Whether a file that begins so is a PNG with a whole header (26 bytes)."""
    return len(head) >= 26 and head.startswith(_PNG_SIGNATURE)


def png_size(head: bytes) -> tuple[int, int]:
    """Height and width from the first 24 bytes of a PNG file."""
    width, height = struct.unpack(">II", head[16:24])
    return height, width


def image_size(data: bytes, where: str, limit: SizeLimit = _DEFAULT) -> tuple[int, int]:
    """Height and width from an image file's header; tests that the file is whole.

    Raises:
        DatasetError: If the file is empty, cut off, no image, or too large.
    """
    _require_whole(where, data)
    return _header_size(io.BytesIO(data), data, where, limit)


def file_problem(path: Path | str, error: Exception) -> Problem:
    """A problem from an error whose message may begin with the file's path."""
    text = str(error) if isinstance(error, DatasetError) else f"{type(error).__name__}: {error}"
    return Problem(str(path), text.removeprefix(f"{path}: "))


def size_mismatch(
    label_size: Sequence[int], image_size: Sequence[int] | None, advice: str = _EQUAL_SIZES
) -> str | None:
    """Says that label and image differ in size; `None` if they don't, or if the image's size isn't known.

    Args:
        label_size: Height and width of the label map.
        image_size: Height and width of the image.
        advice: What to do about it.
    """
    if image_size is None or tuple(label_size) == tuple(image_size):
        return None
    return (
        f"label is {label_size[0]} x {label_size[1]} (height x width), its image {image_size[0]} x {image_size[1]}; "
        f"{advice}"
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


def _open(path: Path, limit: SizeLimit) -> BinaryIO:
    limit.require_bytes(require_file(path), str(path))
    return path.open("rb")


def _header_size(file: BinaryIO, head: bytes, where: str, limit: SizeLimit) -> tuple[int, int]:
    """Height and width from a header, which are within the limit; `head` is at least the first 32 bytes."""
    kind = next((kind for signature, kind in _HEADERS.items() if head.startswith(signature)), None)
    try:
        if is_png(head):
            size = png_size(head)
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            size = _webp_size(head)
        elif kind is not None:
            image = kind(file)
            size = image.height, image.width
        else:
            raise ValueError("unknown kind of file")
    except _UNREADABLE as error:
        raise UnreadableFileError(_not_an_image(where, head)) from error
    limit.require_pixels(size, where)
    return size


def _webp_size(head: bytes) -> tuple[int, int]:
    """Height and width from the first 30 bytes of a WebP file: an extended, a lossless or a lossy one."""
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[26:30])
    return height & 0x3FFF, width & 0x3FFF


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: can't be read ({error}). Restore the file or its permissions."


def _read_ends(path: Path, limit: SizeLimit) -> bytes:
    """The first 32 bytes of a file and its last 64 KiB, or all of it if shorter."""
    with _open(path, limit) as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(len(head), os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        return head + file.read()


def _is_cut_off(data: bytes) -> bool:
    """Whether a PNG or JPEG lacks its end marker; a thumbnail's end marker, before the last scan, doesn't count."""
    if data.startswith(_PNG_SIGNATURE):
        return _PNG_END not in data[-_TAIL_BYTES:] and _PNG_END not in data
    if data.startswith(_JPEG_SIGNATURE):
        end = data.rfind(_JPEG_END)
        return end < 0 or _JPEG_SCAN in data[end:]
    return False


def _require_whole(where: str, data: bytes) -> None:
    if not data:
        raise UnreadableFileError(f"{where}: empty file (0 bytes), expected an image. Copy it again or delete it.")
    if _is_cut_off(data):
        raise UnreadableFileError(
            f"{where}: the file is cut off (its end marker is missing). Copy it again or delete it."
        )


def _not_an_image(where: str, data: bytes) -> str:
    return (
        f"{where}: can't be decoded as an image (begins with {data[:8]!r}); expected 8- or 16-bit PNG, JPEG, BMP, WebP "
        "or TIFF. Convert it, copy it again or delete it."
    )


def _refuse_turned_tiff(where: str, data: bytes) -> None:
    if not data.startswith((b"II", b"MM")):
        return
    try:
        orientation = TiffImageFile(io.BytesIO(data)).getexif().get(_EXIF_ORIENTATION, 1)
    except _UNREADABLE as error:
        raise UnreadableFileError(_not_an_image(where, data)) from error
    if orientation != 1:
        raise DatasetError(
            f"{where}: TIFF with orientation tag {orientation}, expected 1: decoders would turn the image but not its "
            "label. Save it as PNG."
        )


def _decode_tiff_or_bmp(data: bytes, where: str, limit: SizeLimit) -> npt.NDArray[Any]:
    image_size(data, where, limit)
    _refuse_turned_tiff(where, data)
    try:
        image = _HEADERS[data[:2]](io.BytesIO(data))
        if image.mode in _LABEL_MODES:
            return np.array(image)
    except _UNREADABLE as error:
        raise UnreadableFileError(_not_a_label(where, str(error))) from error
    raise DatasetError(
        f"{where}: label is a {image.format} of kind {image.mode}; expected a single channel (grey or palette) of at "
        "most 16 bits whose numbers are class ids. Convert the colours to ids."
    )


def _not_a_label(where: str, why: str) -> str:
    return f"{where}: label can't be decoded ({why}). Copy the file again or delete the pair."


def _png_kind(head: bytes, where: str) -> tuple[int, int]:
    """Bit depth and colour type of a label file that has to be a PNG."""
    if head.startswith(_JPEG_SIGNATURE):
        raise DatasetError(
            f"{where}: label is a JPEG file; JPEG is lossy and mixes the ids at borders. Export the label again as "
            "PNG, TIFF or BMP; converting the JPEG doesn't bring the ids back."
        )
    if not is_png(head):
        raise UnreadableFileError(
            f"{where}: label isn't a PNG file ({'empty' if not head else f'begins with {head[:8]!r}'}); expected a PNG "
            "of class ids. Save it again or copy it again."
        )
    return head[24], head[25]


def _kind_name(color_type: int) -> str:
    return _PNG_COLOR_TYPES.get(color_type, f"unknown (type {color_type})")
