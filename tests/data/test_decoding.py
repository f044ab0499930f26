import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lightning_uda.data.dataset import DatasetError
from lightning_uda.data.decoding import decode_image, decode_label, decode_png

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
        decode_image(png(RGB, 2, size=size), "a")


@pytest.mark.parametrize("data", [b"", b"junk", png(RGB, 2)[:20], png(np.dstack([RGB, IDS]), 6)])
def test_what_the_fast_decoder_does_not_read_is_refused(data):
    with pytest.raises(ValueError, match="no 8-bit PNG in grey, palette or RGB colour"):
        decode_png(data)


def test_a_label_that_is_cut_off_is_an_error():
    with pytest.raises(DatasetError, match="label can't be decoded"):
        decode_label(png(IDS, 3)[:-60], "a")
