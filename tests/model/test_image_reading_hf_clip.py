"""Addresses of images: odd ones are read, hostile servers are left in time."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from hf_clip.model import image_reading_hf_clip as reading
from hf_clip.model.image_reading_hf_clip import open_image


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
        self.send_response(int(name[4:7]) if busy else 200)
        if busy:
            self.send_header("Retry-After", "0")
        self.end_headers()
        try:
            if name == "endless":
                while True:
                    self.wfile.write(bytes(1 << 20))
            elif name == "dripping":
                for _ in range(200):
                    self.wfile.write(b"\x89")
                    time.sleep(0.05)
            else:
                self.wfile.write(png())
        except OSError:  # the reader has left
            pass

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch) -> Iterator[tuple[str, list[str]]]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as found:
        yield found


@contextmanager
def serving() -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Server,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
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
        ("dripping", "it took over 1 seconds"),
        ("nonsense", "no HTTP at all"),
        ("to-file", "not allowed"),
        ("to-ftp", "unknown url type: ftp"),
    ],
)
def test_a_hostile_server_is_left_in_time(name, message, server, monkeypatch):
    monkeypatch.setattr(reading, "MAX_SECONDS", 60.0 if name == "endless" else 1.0)
    begin = time.monotonic()
    with pytest.raises(OSError, match=rf"cannot read 'http://.*/{name}' as an image .*{message}"):
        open_image(f"{server[0]}/{name}")
    assert name == "endless" or time.monotonic() - begin < 5
