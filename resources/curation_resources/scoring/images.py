"""Open a sample's images from files, bytes or web addresses, within limits.

Corpora are not trusted: a path must not leave its folder, an address must not point into the machine's own network, and
decoders that start other programs are not used.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, unquote_to_bytes, urljoin, urlsplit

from curation_resources.scoring.samples import ImageFile, ImageSource

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")
"""Formats to decode (and MPO, which Pillow treats as JPEG). EPS and the like start another program, so they are not."""

TILE_WIDTH, TILE_LENGTH = 322, 323
"""TIFF tags."""

URL_SAFE = "/%?:@!$&'()*+,;=~-._[]"
"""Characters of an address that are sent unchanged; others are percent-encoded."""

REDIRECTS = 5
"""Maximum redirects to follow."""

NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        # Tunnels to other addresses.
        *("192.88.99.0/24", "2002::/16"),
        # IETF protocol assignments: also tunnels, and services of the local network. Not all versions of Python know
        # that these
        # are not global.
        *("192.0.0.0/24", "2001::/23", "3fff::/20"),
        # Azure's metadata and key service.
        "168.63.129.16/32",
    )
]
"""Networks that look public but are not."""

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")

OUR_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)
"""Errors that are not the file's fault: they end the run, which can be resumed."""

CHUNK = 65536
"""Bytes to read at a time from a web address."""


@dataclass(frozen=True)
class ImageLimits:
    """Limits for images.

    Attributes:
        pixels: maximum pixels, before any scaling. Pillow's own limit of about 179 million applies as well.
        bytes: maximum bytes of the encoded image.
        allow_remote: fetch `http:` and `https:` addresses.
        timeout: maximum seconds for fetching one image.
    """

    pixels: int = 50_000_000
    bytes: int = 50_000_000
    allow_remote: bool = False
    timeout: float = 30.0


class ImageError(ValueError):
    """An image is not available.

    Attributes:
        flag: the reason, one of `curation_resources.scoring.samples.UNRUNNABLE`.
    """

    def __init__(self, flag: str, detail: str = "") -> None:
        super().__init__(f"{flag}: {detail}" if detail else flag)
        self.flag = flag


def open_image(source: ImageSource, limits: ImageLimits) -> Image.Image:
    """Return the image as RGB, upright (its EXIF orientation applied); the first frame of an animated one.

    Transparency is dropped, as image processors do.

    Raises:
        ImageError: with the flag `image_missing`, `image_changed`, `image_outside_folder`, `image_remote`,
            `image_unreachable`, `image_unreadable` or `image_too_large`.
    """
    return _decode(_read(source, limits), limits)


def _read(source: ImageSource, limits: ImageLimits) -> bytes:
    """Return the encoded image."""
    if isinstance(source, ImageFile):
        content = _read_file(source, limits)
    elif isinstance(source, bytes):
        content = source
    else:
        content = _read_url(source, limits)
    if len(content) > limits.bytes:
        raise ImageError("image_too_large", f"more than {limits.bytes} bytes")
    return content


def _decode(content: bytes, limits: ImageLimits) -> Image.Image:
    # Pillow is needed only for images; text is measured without it.
    from PIL import Image, ImageOps  # noqa: PLC0415

    try:
        image: Image.Image = Image.open(BytesIO(content), formats=FORMATS)
        # The header holds the size, so nothing is decompressed of an image that is too large.
        for width, height in ((image.width, image.height), _tile_of(image)):
            if width * height > limits.pixels:
                raise ImageError("image_too_large", f"{width} x {height} pixels")
        return _as_rgb(ImageOps.exif_transpose(image))
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image_too_large", str(error)) from error
    except Exception as error:
        # Decoders raise arbitrary exceptions on broken data: OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError("image_unreadable", str(error)) from error


def _tile_of(image: Image.Image) -> tuple[int, int]:
    """Return the tile size of a TIFF: each tile is decompressed as a whole, however small the image is."""
    tags = getattr(image, "tag_v2", None) or {}
    return int(tags.get(TILE_WIDTH, 0)), int(tags.get(TILE_LENGTH, 0))


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert to eight bits per channel. Pillow would clip images with more bits to almost all white."""
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256, "L") if image.mode == "I;16" else image.convert("I")
    if image.mode in ("I", "F"):
        raise ImageError("image_unreadable", f"pixels of type {image.mode}: the value of white is unknown")
    return image.convert("RGB")


def _read_file(source: ImageFile, limits: ImageLimits) -> bytes:
    """Return the bytes of a file below its root, but at most one more than the limit."""
    try:
        root = Path(source.root).resolve()
        path, absolute = _as_path(source.path)
        if path.is_absolute() and not absolute:
            raise ImageError("image_outside_folder", source.path)
        # Resolve links first: the file's real location counts, not its name.
        real = (root / path).resolve()
        if not real.is_relative_to(root):
            raise ImageError("image_outside_folder", source.path)
        if not real.is_file():
            raise ImageError("image_missing", source.path)
        with real.open("rb") as file:
            content = file.read(limits.bytes + 1)
        # The caller rejects a file that is too large, of which only a part has been read.
        if source.digest is not None and len(content) <= limits.bytes:
            found = hashlib.blake2b(content, digest_size=16).hexdigest()
            if found != source.digest:
                raise ImageError("image_changed", source.path)
        return content
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ImageError) or (isinstance(error, OSError) and error.errno in OUR_TROUBLE):
            raise
        # Names that are too long or contain a zero byte, loops of links, files without permission.
        raise ImageError("image_missing", source.path) from error


def _as_path(text: str) -> tuple[Path, bool]:
    """Return a path or `file:` URL as a path, and whether it may be absolute (only a `file:` URL may)."""
    if not text.lower().startswith("file:"):
        return Path(text), False
    url = urlsplit(text)
    if url.netloc not in ("", "localhost"):
        raise ImageError("image_outside_folder", text)
    return Path(unquote(url.path)), True


def _read_url(url: str, limits: ImageLimits) -> bytes:
    scheme = url.split(":", 1)[0].lower()
    if scheme == "data":
        return _read_data_url(url, limits)
    if scheme in ("http", "https"):
        if not limits.allow_remote:
            raise ImageError("image_remote", url)
        return fetch(url, limits)
    # A file without a root folder to stay in, or an unsupported kind of address.
    raise ImageError("image_outside_folder" if scheme == "file" else "image_unreadable", url[:100])


def _read_data_url(url: str, limits: ImageLimits) -> bytes:
    """Return the payload of `data:[type][;base64],payload`."""
    # Four characters of base64 encode three bytes: check the size before decoding.
    if len(url) > 4 * (limits.bytes // 3 + 1024):
        raise ImageError("image_too_large", f"more than {limits.bytes} bytes")
    header, comma, payload = url.partition(",")
    if not comma:
        raise ImageError("image_unreadable", "a data URL without a comma")
    try:
        if not header.lower().endswith(";base64"):
            return unquote_to_bytes(payload)
        return base64.b64decode("".join(unquote(payload).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("image_unreadable", f"a data URL that is not base64: {error}") from error


def is_public_address(address: str) -> bool:
    """Return True if an IP address is public: not private, loopback, link-local or reserved."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    # An IPv6 address may embed an IPv4 address, whose scope then applies.
    embedded = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    if embedded is not None:
        ip = embedded
    if any(ip in network for network in NOT_PUBLIC if network.version == ip.version):
        return False
    # For IPv6, allow only global unicast; this excludes addresses that embed IPv4 ones (NAT64).
    allocated = ip.version == 4 or ip in GLOBAL_UNICAST
    return allocated and ip.is_global and not ip.is_multicast and not ip.is_reserved


def fetch(url: str, limits: ImageLimits) -> bytes:
    """Return the bytes at a web address, following redirects; every hop must be on the public internet.

    The environment's proxies are not used, because the final address could not be checked behind one.

    Raises:
        ImageError: `image_unreachable`, or `image_too_large` as soon as more bytes arrived than are allowed.
    """
    deadline = time.monotonic() + limits.timeout
    try:
        for _ in range(REDIRECTS + 1):
            content, redirect = _fetch_once(url, limits, deadline)
            if redirect is None:
                return content
            url = urljoin(url, redirect)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("image_unreachable", f"{url[:200]}: {error}") from error
    raise ImageError("image_unreachable", f"{url[:200]}: more than {REDIRECTS} redirects")


def _fetch_once(url: str, limits: ImageLimits, deadline: float) -> tuple[bytes, str | None]:
    """Send one request; return the content, or the address that it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError("image_unreachable", f"{url[:200]}: not a web address")
    connection = _connection(parts.scheme, parts.hostname, parts.port, deadline)
    # The watchdog cuts the connection at the deadline, however slowly headers or content trickle in.
    watchdog = threading.Timer(max(0.1, deadline - time.monotonic()), _shut_down, (connection.sock,))
    watchdog.daemon = True
    watchdog.start()
    try:
        if isinstance(connection.sock, ssl.SSLSocket):
            connection.sock.do_handshake()
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=URL_SAFE)
        connection.request("GET", target, headers={"User-Agent": "curation-assets", "Accept": "image/*"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return b"", response.getheader("Location", "")
        if response.status != 200:
            raise ImageError("image_unreachable", f"{url[:200]}: status {response.status}")
        return _read_response(response, limits, deadline), None
    finally:
        watchdog.cancel()
        connection.close()


def _connection(scheme: str, name: str, port: int | None, deadline: float) -> http.client.HTTPConnection:
    """Return a connection to a server on the public internet, before any data is sent.

    The server's name is used for the request and for checking its certificate.
    """
    port = port or (443 if scheme == "https" else 80)
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]
    if not all(map(is_public_address, found)):
        raise ImageError("image_unreachable", f"{name} is not on the public internet")
    # Connect to the addresses that were checked: a second lookup may return others.
    line = _connect(found, port, deadline)
    try:
        if scheme == "http":
            connection = http.client.HTTPConnection(name, port)
            connection.sock = line
        else:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(name, port, context=context)
            connection.sock = context.wrap_socket(line, server_hostname=name, do_handshake_on_connect=False)
    except BaseException:
        line.close()
        raise
    return connection


def _connect(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    """Return a connection to the first address that responds."""
    failed = OSError("the host name has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), max(0.1, deadline - time.monotonic()))
        except OSError as error:
            failed = error
    raise failed


def _shut_down(line: socket.socket) -> None:
    with suppress(OSError):  # it may already be closed
        line.shutdown(socket.SHUT_RDWR)


def _read_response(response: http.client.HTTPResponse, limits: ImageLimits, deadline: float) -> bytes:
    content = bytearray()
    # read1 returns available bytes, so the deadline is checked however slowly they trickle in.
    while chunk := response.read1(CHUNK):
        content += chunk
        if len(content) > limits.bytes:
            raise ImageError("image_too_large", f"more than {limits.bytes} bytes")
    # A connection that was cut looks like the end of the content.
    if time.monotonic() > deadline:
        raise ImageError("image_unreachable", f"incomplete after {limits.timeout} seconds")
    return bytes(content)
