"""Addresses of images: odd ones are read, hostile servers are left in time."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from hf_clip.model import image_reading_hf_clip as reading
from hf_clip.model.image_reading_hf_clip import download_image, open_image


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (7, 5), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Server(BaseHTTPRequestHandler):
    """Answers by path; `asked` has the paths so far."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.rpartition("/")[2].partition("?")[0]
        busy = name.startswith("busy") and self.asked.count(self.path) < 3
        if name == "nonsense":
            self.wfile.write(b"no HTTP at all\r\n\r\n")
            return
        if name in ("to-file", "to-ftp"):
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname" if name == "to-file" else "ftp://127.0.0.1/x.png")
            self.end_headers()
            return
        if name in DRIPS:
            self.drip(*DRIPS[name])
            return
        self.send_response(302 if name == "endless-redirect" else int(name[4:7]) if busy else 200)
        if busy:
            self.send_header("Retry-After", "0")
        if name == "endless-redirect":
            self.send_header("Location", "/a.png")
        self.end_headers()
        try:
            if name.startswith("endless"):
                while True:
                    self.wfile.write(bytes(1 << 20))
            else:
                self.wfile.write(png())
        except OSError:  # the reader has left
            pass

    def drip(self, head: bytes, rest: bytes) -> None:
        """Send `rest` byte by byte, each long before a wait for it would end, until the reader has left."""
        with suppress(OSError):
            self.wfile.write(head)
            for byte in rest * 1000:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


# what a server sends slowly, again and again
DRIPS = {
    "drips-status": (b"HTTP/1.1 200 ", b"O"),
    "drips-headers": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "drips-continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "drips-redirect": (b"HTTP/1.1 302 Found\r\nLocation: /a.png\r\nContent-Length: 9999\r\n\r\n", b"x"),
    "drips-chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "drips-image": (b"HTTP/1.0 200 OK\r\n\r\n", b"\x89"),
}


@pytest.fixture
def server(monkeypatch) -> Iterator[tuple[str, list[str]]]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as found:
        yield found


@contextmanager
def serving() -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Server,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=[0.02], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", handler.asked
        http.shutdown()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a photo.png", "/a%20photo.png"),
        ("/Köln/straße.png?größe=2 m", "/K%C3%B6ln/stra%C3%9Fe.png?gr%C3%B6%C3%9Fe=2%20m"),
        ("/already%20quoted.png", "/already%20quoted.png"),
        ("/plain.png#part", "/plain.png"),
    ],
)
def test_blanks_and_letters_beyond_ascii_are_quoted(path, asked, server):
    address, paths = server
    assert open_image(address + path).size == (7, 5)
    assert paths == [asked]


def test_the_case_of_the_scheme_does_not_matter(server):
    assert open_image(server[0].replace("http", "HTTP") + "/a.png").size == (7, 5)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status, server):
    address, paths = server
    assert open_image(f"{address}/busy{status}.png").size == (7, 5)
    assert len(paths) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("endless", "it has over 100 MB"),
        *((name, r"it took over 0\.3 seconds") for name in DRIPS),
        ("nonsense", "no HTTP at all"),
        ("to-file", "not allowed"),
        ("to-ftp", "unknown url type: ftp"),
    ],
)
def test_a_hostile_server_is_left_in_time(name, message, server, monkeypatch):
    monkeypatch.setattr(reading, "MAX_SECONDS", 0.3 if name in DRIPS else 60.0)
    with pytest.raises(OSError, match=rf"cannot read 'http://.*/{name}' as an image .*{message}"):
        open_image(f"{server[0]}/{name}")


def test_a_redirect_has_a_bounded_body(server, monkeypatch):
    monkeypatch.setattr(reading, "MAX_EXTRA_BYTES", 3_000_000)
    with pytest.raises(OSError, match="it has over 3 MB"):
        download_image(f"{server[0]}/endless-redirect", most=1000)
