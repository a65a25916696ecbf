"""Addresses in rows lead to the public internet or nowhere: not to this machine, its network or its platform."""

from __future__ import annotations

import datetime
import io
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from curation_resources.scoring import images
from curation_resources.scoring.images import ImageError, ImageLimits, open_image

ALLOWED = ImageLimits(allow_remote=True, timeout=3)
HERE, THERE = "127.0.0.1", "127.0.0.2"
"""Two addresses of this machine: tests that need a server take the first for one of the internet."""


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 30, 10)).save(content, "PNG")
    return content.getvalue()


class Pages(BaseHTTPRequestHandler):
    """An image, and redirects to wherever the path says; remembers by which address it was reached."""

    reached: list[str]

    def do_GET(self) -> None:
        self.reached.append(self.connection.getsockname()[0])
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(picture())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses by which the server was reached."""
    found: list[str] = []
    monkeypatch.setattr(Pages, "reached", found, raising=False)
    return found


@pytest.fixture
def port(reached: list[str]) -> Iterator[int]:
    """The port of a server that answers on every address of this machine."""
    with ThreadingHTTPServer(("", 0), Pages) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running.server_port
        running.shutdown()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that lines were opened to, or tried."""
    found: list[str] = []
    connect = socket.create_connection

    def watched(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        found.append(address[0])
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", watched)
    return found


@pytest.fixture
def here_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address of this machine stands for one of the internet; all others are what they are."""
    real = images.is_public_address
    monkeypatch.setattr(images, "is_public_address", lambda address: address == HERE or real(address))


def refused(url: str) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(url, ALLOWED)
    assert caught.value.flag == "image_unreachable"
    return str(caught.value)


OF_THIS_MACHINE = [
    "127.0.0.1",
    "127.1",
    "127.0.0.2",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "0",
    "localhost",
    "LOCALHOST.",
    "user:word@127.0.0.1",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
]


@pytest.mark.parametrize("host", OF_THIS_MACHINE)
def test_this_machine_is_not_asked_in_any_spelling(host: str, port: int, lines: list[str], reached: list[str]) -> None:
    refused(f"http://{host}:{port}/a.png")
    assert (lines, reached) == ([], [])


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # metadata of AWS, Google and Azure
        "169.254.170.2",  # credentials of ECS
        "[fd00:ec2::254]",
        "[fe80::a9fe:a9fe]",
        "[fc00::1]",
        "100.100.100.200",  # metadata of Alibaba, in the carriers' network
        "192.0.0.192",  # of Oracle
        "168.63.129.16",  # of Azure, among public addresses
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::]",
        "[2001:0:a9fe:a9fe::]",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[ff02::1]",
    ],
)
def test_the_network_and_the_platform_are_not_asked(host: str, lines: list[str]) -> None:
    refused(f"http://{host}/latest/meta-data/")
    assert lines == []


@pytest.mark.usefixtures("here_is_public")
@pytest.mark.parametrize(
    "target",
    [
        f"http://{THERE}:PORT/a.png",
        f"//{THERE}:PORT/a.png",
        "http://[::1]:PORT/a.png",
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "https://10.0.0.1/a.png",
        "file:///etc/hostname",
        "ftp://127.0.0.1/a.png",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "data:image/png;base64,AAAA",
        f"/to//to/http://{THERE}:PORT/a.png",
    ],
)
def test_redirects_lead_nowhere_else(target: str, port: int, lines: list[str], reached: list[str]) -> None:
    start = f"http://{HERE}:{port}/to/"
    assert open_image(f"{start}/a.png", ALLOWED).size == (4, 3)
    refused(start + target.replace("PORT", str(port)))
    assert set(lines) == set(reached) == {HERE}


def test_a_name_must_not_lead_here_by_any_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch, port: int, lines: list[str]
) -> None:
    answer: list[Any] = [(2, 1, 6, "", ("93.184.216.34", port)), (2, 1, 6, "", (HERE, port))]
    for addresses in (answer, answer[::-1], answer[1:]):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=addresses, **__: found)
        assert "not on the public internet" in refused(f"http://pictures.example:{port}/a.png")
    assert lines == []


@pytest.mark.usefixtures("here_is_public")
def test_a_name_that_leads_elsewhere_the_second_time_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, port: int, lines: list[str], reached: list[str]
) -> None:
    """DNS rebinding: the name server gives a public address to the check, and a private one to the connection."""
    look_up, asked = socket.getaddrinfo, []

    def rebinding(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "pictures.example":
            return look_up(host, *args, **kwargs)
        asked.append(host)
        return look_up(HERE if len(asked) == 1 else THERE, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert open_image(f"http://pictures.example:{port}/a.png", ALLOWED).size == (4, 3)
    assert (lines, reached, len(asked)) == ([HERE], [HERE], 1)


@pytest.mark.usefixtures("here_is_public")
def test_proxies_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, port: int, reached: list[str]
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{HERE}:{port}")
    refused("http://nowhere.invalid/a.png")
    assert reached == []


def test_nothing_is_fetched_unless_the_configuration_says_so(port: int, lines: list[str]) -> None:
    with pytest.raises(ImageError, match="image_remote"):
        open_image(f"http://{HERE}:{port}/a.png", ImageLimits())
    assert lines == []


@pytest.mark.usefixtures("here_is_public")
def test_a_certificate_is_checked_by_the_name(tmp_path: Path, reached: list[str]) -> None:
    key, certificate = self_signed("pictures.example")
    (tmp_path / "both.pem").write_bytes(key + certificate)
    with ThreadingHTTPServer((HERE, 0), Pages) as running:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "both.pem")
        running.socket = context.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        assert "certificate" in refused(f"https://{HERE}:{running.server_port}/a.png").lower()
        running.shutdown()
    assert reached == []


def self_signed(name: str) -> tuple[bytes, bytes]:
    """A key and a certificate that nobody vouches for, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    private = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(form)
