import io
import math
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lightning_uda.data.dataset import DatasetError, SizeLimit, UnreadableFileError
from lightning_uda.data.decoding import (
    check_image_file,
    decode_first_channel,
    decode_image,
    decode_label,
    decode_png,
    image_size,
    read_image,
    read_label,
)

SIZE = HEIGHT, WIDTH = 37, 53
RGB = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
IDS = RGB[:, :, 0]
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(array, color_type, extra=b"", passes=((0, 0, 1, 1),), size=SIZE):
    """A PNG file of 8 bits written by hand: header, other chunks, rows without filter, end."""
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, color_type, 0, 0, len(passes) > 1)
    parts = [array[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        png(RGB, 2),
        png(RGB, 2, passes=ADAM7),
        png(RGB, 2, chunk(b"tRNS", struct.pack(">HHH", *RGB[0, 0]))),
        png(RGB, 2, chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"sBIT", b"\5\5\5")),
        saved(Image.fromarray(RGB), "png"),
        saved(Image.fromarray(np.dstack([RGB, IDS])), "png"),
        saved(Image.fromarray(RGB), "bmp"),
        saved(Image.fromarray(RGB), "webp", lossless=True),
    ],
)
def test_an_image_is_what_was_stored_whatever_the_kind_of_file(data):
    image = decode_image(data, "a")
    assert np.array_equal(image, RGB)
    assert image.flags.writeable
    assert image.flags.c_contiguous


@pytest.mark.parametrize("color_type", [0, 3])
@pytest.mark.parametrize("passes", [((0, 0, 1, 1),), ADAM7])
def test_a_label_map_is_the_stored_numbers(color_type, passes):
    short_palette = chunk(b"PLTE", bytes(30)) + chunk(b"tRNS", bytes(7))
    label = decode_label(png(IDS, color_type, short_palette if color_type == 3 else b"", passes), "a")
    assert np.array_equal(label, IDS)
    assert label.flags.c_contiguous


@pytest.mark.parametrize("level", [1, 6, 9])
def test_every_filter_and_strength_is_undone(level):
    smooth = np.cumsum(RGB // 64, axis=1, dtype=np.uint8)
    data = saved(Image.fromarray(smooth), "png", compress_level=level)
    assert np.array_equal(decode_png(data), smooth)


def test_a_uniform_image_is_not_taken_for_a_damaged_one():
    black = np.zeros((2000, 3000, 3), np.uint8)
    assert np.array_equal(decode_png(saved(Image.fromarray(black), "png", compress_level=9)), black)


def damaged(data):
    middle = data.index(b"IDAT") + 300
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def test_a_changed_byte_is_found_and_named():
    with pytest.raises(DatasetError, match=r"^a\.png: damaged PNG \(.*CRC.*\)\. Copy it again or delete it\.$"):
        decode_image(damaged(png(RGB, 2)), "a.png")
    with pytest.raises(DatasetError, match=r"^a\.png: label can't be decoded \(.*CRC.*\)\. Copy the file again"):
        decode_label(damaged(png(IDS, 0)), "a.png")


@pytest.mark.parametrize("size", [(1 << 30, 1 << 30), (1 << 30, 53), (200_000, 200_000), (0, 53)])
def test_a_header_with_an_absurd_size_is_an_error_like_any_other(size):
    with pytest.raises(DatasetError, match="damaged PNG"):
        decode_image(png(RGB, 2, size=size), "a", SizeLimit(math.inf))


def jpeg(size):
    """A JPEG file that claims another size."""
    data = bytearray(saved(Image.fromarray(RGB), "jpeg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", *size)
    return bytes(data)


def bmp(size):
    """A BMP file that claims another size."""
    data = bytearray(saved(Image.fromarray(RGB), "bmp"))
    data[18:26] = struct.pack("<II", size[1], size[0])
    return bytes(data)


def tiff(size):
    """A TIFF file that claims another size."""
    data = saved(Image.fromarray(RGB), "tiff")
    for tag, have, want in zip((257, 256), SIZE, size, strict=True):
        entries = [struct.pack("<HHIHH", tag, 3, 1, have, 0), struct.pack("<HHII", tag, 4, 1, have)]
        (entry,) = {entry for entry in entries if entry in data}
        data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, want))
    return data


def webp(size):
    """An extended WebP file that claims another size."""
    data = bytearray(saved(Image.fromarray(RGB), "webp", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"".join((side - 1).to_bytes(3, "little") for side in reversed(size))
    return bytes(data)


@pytest.mark.parametrize("made", [lambda size: png(RGB, 2, size=size), jpeg, bmp, tiff, webp])
def test_an_image_beyond_the_limit_is_refused_by_its_header(made, tmp_path):
    assert image_size(made(SIZE), "a") == SIZE
    message = (
        r"found 10000 x 12000 pixels \(height x width, 120 megapixels\), expected at most 100 megapixels\. "
        r".*raise the limit \(data\.max_megapixels\)"
    )
    data, path = made((10_000, 12_000)), tmp_path / "a.file"
    path.write_bytes(data)
    for read in (decode_image, image_size):
        with pytest.raises(UnreadableFileError, match=rf"^dir/a\.file: {message}"):
            read(data, "dir/a.file")
    with pytest.raises(UnreadableFileError, match=rf"^{path}: {message}"):
        check_image_file(path)
    assert image_size(data, "a", SizeLimit(120)) == (10_000, 12_000)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
def test_sizes_are_read_from_the_header_of_every_kind_of_webp(options):
    assert image_size(saved(Image.fromarray(RGB), "webp", **options), "a") == SIZE


def test_labels_beyond_the_limit_are_refused_by_their_header():
    for decode, data in ((decode_label, png(IDS, 0, size=(10_000, 12_000))), (decode_first_channel, rgb16())):
        with pytest.raises(UnreadableFileError, match="found 10000 x 12000 pixels"):
            decode(data, "a")


def rgb16():
    """The header of a label map with 16 bits in each of three channels."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 10_000, 16, 2, 0, 0, 0))


def test_a_long_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(500_000_000)  # takes no room on the disk
    message = (
        r"a\.png: found a file of 0\.5 GB, expected at most 400 MB \(4 bytes for each of 100 megapixels\)\. Make it"
    )
    for read in (read_image, read_label, check_image_file):
        with pytest.raises(UnreadableFileError, match=message):
            read(tmp_path / "a.png")


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name, kind in (("pipe.png", "a named pipe"), ("device.png", "a device")):
        for read in (read_image, read_label, check_image_file):
            with pytest.raises(UnreadableFileError, match=rf"{name}: this is {kind}, expected a file\. Take it away"):
                read(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"junk", png(RGB, 2)[:20], png(np.dstack([RGB, IDS]), 6)])
def test_what_the_fast_decoder_does_not_read_is_refused(data):
    with pytest.raises(ValueError, match="no 8-bit PNG in grey, palette or RGB colour"):
        decode_png(data)


def test_a_label_that_is_cut_off_is_an_error():
    with pytest.raises(DatasetError, match="label can't be decoded"):
        decode_label(png(IDS, 3)[:-60], "a")
