"""Opening images from files, bytes and addresses; every way in which that can fail has its flag."""

from __future__ import annotations

import base64
import errno
import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curation_resources.scoring import images
from curation_resources.scoring.images import ImageError, ImageLimits, is_public_address, open_image
from curation_resources.scoring.samples import UNRUNNABLE, ImageFile, ImageSource

LIMITS = ImageLimits()


def picture(width: int = 40, height: int = 30, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """An encoded image: red, its upper left quarter white."""
    image = Image.new("RGB", (width, height), (200, 30, 10))
    image.paste((255, 255, 255), (0, 0, width // 2, height // 2))
    content = io.BytesIO()
    image.convert(mode).save(content, kind)
    return content.getvalue()


def flag_of(source: ImageSource, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, limits)
    assert caught.value.flag in UNRUNNABLE
    return caught.value.flag


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    (folder / "deep").mkdir(parents=True)
    (folder / "a picture.png").write_bytes(picture())
    (tmp_path / "outside.png").write_bytes(picture())
    (folder / "leads_out.png").symlink_to(tmp_path / "outside.png")
    (folder / "leads_within.png").symlink_to(folder / "a picture.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return folder


def test_one_image_from_every_source(root: Path) -> None:
    content = picture()
    encoded = base64.b64encode(content).decode()
    sources: list[ImageSource] = [
        content,
        f"data:image/png;base64,{encoded}",
        f"data:;base64,{encoded[:60]}%0A{encoded[60:]}",
        ImageFile(str(root), "a picture.png"),
        ImageFile(str(root), "deep/../a picture.png"),
        ImageFile(str(root), "leads_within.png"),
        ImageFile(str(root), (root / "a picture.png").as_uri()),
        ImageFile(str(root), "file:a%20picture.png"),
    ]
    opened = [open_image(source, LIMITS) for source in sources]
    assert {image.mode for image in opened} == {"RGB"}
    assert {image.tobytes() for image in opened} == {Image.open(io.BytesIO(content)).tobytes()}


@pytest.mark.parametrize(
    ("path", "flag"),
    [
        ("missing.png", "image_missing"),
        ("deep", "image_missing"),
        ("", "image_missing"),
        ("loop.png", "image_missing"),
        ("zero\0byte.png", "image_missing"),
        ("x" * 5000, "image_missing"),
        ("../outside.png", "image_outside_folder"),
        ("../missing.png", "image_outside_folder"),
        ("/etc/hostname", "image_outside_folder"),
        ("file:///etc/hostname", "image_outside_folder"),
        ("file://elsewhere/a.png", "image_outside_folder"),
        ("file:../outside.png", "image_outside_folder"),
        ("leads_out.png", "image_outside_folder"),
    ],
)
def test_a_path_that_does_not_lead_to_an_image_of_the_folder(root: Path, path: str, flag: str) -> None:
    assert flag_of(ImageFile(str(root), path)) == flag


def test_an_absolute_path_is_refused_also_below_the_folder(root: Path) -> None:
    assert flag_of(ImageFile(str(root), str(root / "a picture.png"))) == "image_outside_folder"


def test_a_pipe_is_not_an_image(root: Path) -> None:
    import os

    os.mkfifo(root / "pipe.png")
    assert flag_of(ImageFile(str(root), "pipe.png")) == "image_missing"


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"no image",
        picture()[:90],
        "data:image/png;base64,@@@",
        "data:image/png;base64",
        "data:text/plain,hello",
        "ftp://example.org/a.png",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n",
    ],
)
def test_what_cannot_be_decoded(source: ImageSource) -> None:
    assert flag_of(source) == "image_unreadable"


def test_a_file_url_needs_a_folder_to_stay_in() -> None:
    assert flag_of("file:///etc/hostname") == "image_outside_folder"


def test_limits_on_pixels_and_bytes(root: Path) -> None:
    content = picture(40, 30)
    assert open_image(content, ImageLimits(pixels=1200)).size == (40, 30)
    assert flag_of(content, ImageLimits(pixels=1199)) == "image_too_large"
    small = ImageLimits(bytes=len(content) - 1)
    assert flag_of(content, small) == "image_too_large"
    assert flag_of(ImageFile(str(root), "a picture.png"), small) == "image_too_large"
    assert flag_of("data:image/png;base64," + "A" * 10_000, ImageLimits(bytes=100)) == "image_too_large"


def test_a_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    content = picture(40, 30)
    # Pillow raises above twice its bound, whatever our own limit.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert flag_of(content) == "image_too_large"


def test_orientation_animation_and_transparency() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    content = io.BytesIO()
    Image.new("RGB", (40, 30)).save(content, "JPEG", exif=exif)
    assert open_image(content.getvalue(), LIMITS).size == (30, 40)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    assert open_image(content.getvalue(), LIMITS).getpixel((0, 0)) == (255, 0, 0)
    for mode in ("RGBA", "P", "L", "1", "LA"):
        assert open_image(picture(mode=mode), LIMITS).mode == "RGB"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("172.16.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("localhost", False),
        ("64:ff9b::a00:1", False),  # NAT64 to 10.0.0.1
        ("::127.0.0.1", False),
        ("::ffff:0:7f00:1", False),
        ("fec0::1", False),
        ("192.88.99.1", False),
        ("2001:0:4136:e378::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public_address(address) is public


class Pages(BaseHTTPRequestHandler):
    """A web server with images, redirects and failures."""

    def do_GET(self) -> None:
        if self.path.startswith("/hop"):
            self.send_response(302)
            self.send_header("Location", self.path[4:] or "/hop")
            self.end_headers()
            return
        if self.path == "/slow":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            for number in range(100):
                time.sleep(0.1)
                self.wfile.write(b"X-%d: still coming\r\n" % number)
        self.send_response(200 if self.path in ("/a.png?x=1", "/gr%C3%B6%C3%9Fe.png") else 404)
        self.end_headers()
        self.wfile.write(picture())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Pages) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_web_address_is_fetched_only_if_that_is_allowed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = ImageLimits(allow_remote=True, timeout=5)
    assert flag_of(f"{server}/a.png?x=1") == "image_remote"
    assert flag_of("HTTPS://example.org/a.png") == "image_remote"
    # This machine's own server is not of the public internet, ...
    assert flag_of(f"{server}/a.png?x=1", allowed) == "image_unreachable"
    monkeypatch.setattr(images, "is_public_address", lambda address: address == "127.0.0.1")
    # ... here it may be.
    assert open_image(f"{server}/a.png?x=1", allowed).size == (40, 30)
    assert open_image(f"{server}/hop/hop/a.png?x=1", allowed).size == (40, 30)
    assert flag_of(f"{server}/absent.png", allowed) == "image_unreachable"
    assert flag_of(f"{server}/hop", allowed) == "image_unreachable"
    assert flag_of(f"{server}/hopfile:///etc/hostname", allowed) == "image_unreachable"
    elsewhere = server.replace("127.0.0.1", "127.0.0.2")
    assert flag_of(f"{server}/hop{elsewhere}/a.png?x=1", allowed) == "image_unreachable"
    assert flag_of("http://127.0.0.1:1/a.png", allowed) == "image_unreachable"
    assert flag_of("http://[broken/a.png", allowed) == "image_unreachable"
    assert flag_of(f"{server}/a.png?x=1", ImageLimits(bytes=50, allow_remote=True)) == "image_too_large"


def test_headers_that_trickle_in_are_cut_off(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "is_public_address", lambda address: True)
    started = time.monotonic()
    assert flag_of(f"{server}/slow", ImageLimits(allow_remote=True, timeout=0.5)) == "image_unreachable"
    assert time.monotonic() - started < 5  # sent in full they take ten seconds


def test_addresses_need_not_be_ascii(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "is_public_address", lambda address: True)
    allowed = ImageLimits(allow_remote=True, timeout=5)
    assert open_image(f"{server}/größe.png", allowed).size == (40, 30)
    assert open_image(f"{server}/gr%C3%B6%C3%9Fe.png", allowed).size == (40, 30)


def encoded_as(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    ramp = Image.frombytes("I;16", (256, 1), bytes(b for value in range(256) for b in (0, value)))
    shades = np.asarray(open_image(encoded_as(ramp, "PNG"), ImageLimits()))[0, :, 0]
    assert shades.tolist() == list(range(256))


def test_pixels_of_unknown_range_are_refused() -> None:
    assert flag_of(encoded_as(Image.new("F", (4, 4), 0.5), "TIFF")) == "image_unreadable"


def test_trouble_of_the_machine_is_not_said_of_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())

    def exhausted(*_: object, **__: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(Image, "open", exhausted)
    with pytest.raises(MemoryError):
        open_image(picture(), ImageLimits())
    monkeypatch.setattr(Path, "open", lambda *_: too_many_files())
    with pytest.raises(OSError, match="Too many open files"):
        open_image(ImageFile(str(tmp_path), "a.png"), ImageLimits())


def too_many_files() -> None:
    raise OSError(errno.EMFILE, "Too many open files")
