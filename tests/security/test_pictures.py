"""Images that unpack to far more than their bytes are refused before they are unpacked."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from curation_resources.scoring.images import FORMATS, ImageError, ImageLimits, open_image

LIMITS = ImageLimits()
MIB = 2**20


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10 * 11))
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")))


def tiff(width: int, height: int, data: bytes, tile: tuple[int, int] | None = None) -> bytes:
    """A TIFF of one band, packed by deflate, in one strip or in tiles."""
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1)]
    place = len(tags)
    if tile is None:
        tags += [(273, 0), (278, height), (279, len(data))]
    else:
        tags += [(322, tile[0]), (323, tile[1]), (324, 0), (325, len(data))]
        place += 1
    start = 8 + 2 + 12 * len(tags) + 4
    tags = [(tag, start if tag in (273, 324) else value) for tag, value in tags]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def gif_frame_larger_than_its_screen() -> bytes:
    whole = bytearray(encoded(Image.new("P", (9000, 9000)), "GIF"))
    whole[6:10] = struct.pack("<HH", 10, 10)
    return bytes(whole)


def jpeg2000_larger_than_it_says() -> bytes:
    whole = bytearray(encoded(Image.new("L", (9000, 9000)), "JPEG2000"))
    place = whole.index(b"ihdr") + 4
    whole[place : place + 8] = struct.pack(">II", 10, 10)
    return bytes(whole)


def zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "png": (lambda: png(60_000, 60_000), "image_too_large"),
    "png, just too large": (lambda: encoded(Image.new("1", (8000, 6251)), "PNG"), "image_too_large"),
    "png with a text": (lambda: png(10, 10, chunk(b"zTXt", b"k\0\0" + zeros(200 * MIB))), "image_unreadable"),
    "png with a longer text": (
        lambda: png(10, 10, chunk(b"iTXt", b"k\0\1\0\0\0" + zeros(200 * MIB))),
        "image_unreadable",
    ),
    "bmp": (
        lambda: b"BM" + struct.pack("<IHHIIIIHHIIIIII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "",
    ),
    "gif": (gif_frame_larger_than_its_screen, "image_too_large"),
    "webp": (lambda: encoded(Image.new("RGB", (8000, 6251)), "WEBP", lossless=True, method=0), "image_too_large"),
    "tiff": (lambda: tiff(60_000, 60_000, zeros(100)), "image_too_large"),
    "tiff in one tile": (lambda: tiff(10, 10, zeros(300 * MIB), (16 * 1024, 19 * 1024 + 208)), "image_too_large"),
    "ppm": (lambda: b"P5 60000 60000 255\n", "image_too_large"),
    "jpeg2000": (jpeg2000_larger_than_it_says, "image_unreadable"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_not_unpacked(name: str) -> None:
    make, flag = BOMBS[name]
    bomb = make()
    assert len(bomb) < MIB
    with pytest.raises(ImageError) as caught:
        open_image(bomb, LIMITS)
    assert caught.value.flag == flag or not flag


def test_what_is_no_bomb_is_opened() -> None:
    """The same files with sizes that are meant: it is the size that is refused."""
    assert open_image(png(10, 10), LIMITS).size == (10, 10)
    assert open_image(tiff(10, 10, zeros(100)), LIMITS).size == (10, 10)
    assert open_image(tiff(10, 10, zeros(256), (16, 16)), LIMITS).size == (10, 10)
    assert open_image(encoded(Image.new("1", (8000, 6250)), "PNG"), LIMITS).size == (8000, 6250)


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_every_format_that_is_named_is_opened(kind: str) -> None:
    assert open_image(encoded(Image.new("RGB", (30, 20), "red"), kind), LIMITS).size == (30, 20)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX", "TGA", "SGI"])
def test_no_other_format_is_opened(kind: str) -> None:
    """Pillow reads many formats, some of them by starting another program."""
    with pytest.raises(ImageError, match="image_unreadable"):
        open_image(encoded(Image.new("RGB", (32, 32), "red"), kind), LIMITS)
