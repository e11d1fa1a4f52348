"""Image files and addresses, read within limits: a stranger's path or server must not hang or fill the machine."""

import io
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import (
    AbstractHTTPHandler,
    DataHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from PIL import Image

MAX_IMAGE_BYTES = 100_000_000
# of one image in all, redirects and retries included; and of each wait for a server
MAX_SECONDS, WAIT_SECONDS = 60.0, 15.0
# of headers and of the bodies of redirects, over those of the image
MAX_EXTRA_BYTES = 10_000_000
CHUNK = 1 << 16
# servers that are busy are asked again, after so many seconds unless they tell how many
BUSY, PAUSES = (429, 503), (1.0, 3.0)


def is_image_path(source: Any) -> bool:
    """Return True for a path or an address, False for an image."""
    return isinstance(source, str | os.PathLike)


def is_address(source: str) -> bool:
    """Return True for an `http(s)://` or a `data:` address, in any case."""
    return re.match(r"(https?://|data:)", source, re.IGNORECASE) is not None


def open_image(source: str | os.PathLike) -> Image.Image:
    """Open the image at a path, an `http(s)://` or a `data:` address: in the file's own mode, not turned by EXIF.

    At most `MAX_IMAGE_BYTES` are read, from regular files only, and a download ends after `MAX_SECONDS`.
    """
    source = os.fspath(source)
    try:
        return Image.open(io.BytesIO(download_image(source) if is_address(source) else _read_file(source)))
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(f"cannot read {source[:200]!r} as an image (texts go in `text=`): {error}") from error


@contextmanager
def naming(index: int | None, source: Any) -> Iterator[None]:
    """Name the image, by file and by number if there are several, in any exception raised inside.

    The new exception is an OSError, TypeError, ValueError or DecompressionBombError, as the first was; any other that a
    plugin of Pillow raises becomes an OSError. Its `unnamed` is the first message.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        kinds = (OSError, TypeError, ValueError, Image.DecompressionBombError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), OSError)
        message = str(error) or type(error).__name__
        path = os.fspath(source) if is_image_path(source) else str(getattr(source, "filename", None) or "")
        where = f" ({path[:200]})" if path and path[:200] not in message else ""
        named = kind(f"{'image' if index is None else f'images[{index}]'}{where}: {message}")
        named.unnamed = message
        raise named from error


def _read_file(path: str) -> bytes:
    # a FIFO would wait for a writer before it can be recognized
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is no regular file")
        check_size(found.st_size)
        return file.read()


def check_size(size: int, most: int = MAX_IMAGE_BYTES) -> None:
    """Raise OSError for more bytes than an image may have."""
    if size > most:
        raise OSError(f"it has over {most // 10**6} MB")


def download_image(
    address: str,
    most: int = MAX_IMAGE_BYTES,
    check_redirect: Callable[[str], None] | None = None,
    check_host: Callable[[str, Sequence[str]], None] | None = None,
) -> bytes:
    """Download an address in chunks and against the clock, which runs from the first connection on.

    Busy servers are asked again. Connections, headers, redirects and the image share the seconds of one download.

    Args:
        address: An `http(s)://` or a `data:` address.
        most: The most bytes that the image may have.
        check_redirect: Raises an exception for an address that a redirect must not lead to.
        check_host: Raises an exception for a host, given with its IP addresses, that must not be connected to. Proxies
            are not used then: they would resolve names themselves.
    """
    limits = _Limits(most, check_host)
    opener = _opener(limits, check_redirect)
    for pause in (*PAUSES, None):
        try:
            return _read_response(_as_ascii(address), limits, opener, most)
        except HTTPError as error:
            if error.code not in BUSY or pause is None:
                raise
            told = error.headers.get("Retry-After", "")
            seconds = float(told) if told.isdecimal() else pause
            if time.monotonic() + seconds > limits.deadline:
                raise
            time.sleep(seconds)
    raise AssertionError  # the last attempt returns or raises


def _read_response(address: str, limits: "_Limits", opener: OpenerDirector, most: int) -> bytes:
    # some sites turn urllib's own name away
    request, chunks, size = Request(address, headers={"User-Agent": "hf_clip"}), [], 0
    with opener.open(request, timeout=limits.wait()) as response:
        read = getattr(response, "read1", response.read)  # read1 returns what has come, however little
        while chunk := read(CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            check_size(size, most)
    return b"".join(chunks)


class _Limits:
    """The seconds and bytes that one download has left, over all its connections."""

    def __init__(self, most: int, check_host: Callable[[str, Sequence[str]], None] | None):
        self.deadline = time.monotonic() + MAX_SECONDS
        self.check_host = check_host
        self._most = self._left = most + MAX_EXTRA_BYTES

    def wait(self) -> float:
        """Return the seconds to wait for the next bytes; raise TimeoutError if none are left."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it took over {MAX_SECONDS:g} seconds")
        return min(WAIT_SECONDS, left)

    def spend(self, count: int) -> None:
        """Take `count` bytes off; raise OSError if no more are left."""
        self._left -= count
        check_size(self._most - self._left, self._most)

    def connect(self, address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
        """Connect to one of the IP addresses of a host, all of them checked first."""
        found = [str(each[4][0]) for each in socket.getaddrinfo(*address, type=socket.SOCK_STREAM)]
        if self.check_host is not None:
            self.check_host(address[0], found)
        failure = OSError("it has no address")
        for ip in found:
            try:
                return socket.create_connection((ip, address[1]), self.wait(), source_address)
            except OSError as error:
                failure = error
        raise failure

    def bound(self, kind: Callable[..., HTTPConnection]) -> Callable[..., HTTPConnection]:
        """Return a maker of connections of a `kind` that keep to the limits."""

        def make(*args: Any, **kwargs: Any) -> HTTPConnection:
            made: Any = kind(*args, **kwargs)
            made._create_connection = self.connect
            made.response_class = self._response
            return made

        return make

    def _response(self, sock: socket.socket, *args: Any, **kwargs: Any) -> HTTPResponse:
        response: Any = HTTPResponse(sock, *args, **kwargs)
        response.fp = io.BufferedReader(_LimitedStream(sock, response.fp.detach(), self))
        return response


class _LimitedStream(io.RawIOBase):
    """Read a socket within limits: `http.client` itself waits for each byte of a header anew."""

    def __init__(self, sock: socket.socket, stream: Any, limits: _Limits):
        super().__init__()
        self._sock, self._stream, self._limits = sock, stream, limits

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._limits.wait())
        try:
            count = self._stream.readinto(buffer)
        except TimeoutError:
            self._limits.wait()  # says so if no time is left
            raise
        self._limits.spend(count)
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _LimitedHandler(AbstractHTTPHandler):
    def __init__(self, limits: _Limits):
        super().__init__()
        self._limits = limits

    def do_open(self, http_class: Any, req: Request, **http_conn_args: Any) -> Any:
        return super().do_open(self._limits.bound(http_class), req, **http_conn_args)


class _LimitedHTTPHandler(_LimitedHandler, HTTPHandler):
    pass


class _LimitedHTTPSHandler(_LimitedHandler, HTTPSHandler):
    pass


class _CheckedRedirects(HTTPRedirectHandler):
    def __init__(self, check: Callable[[str], None]):
        self._check = check

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self._check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(limits: _Limits, check_redirect: Callable[[str], None] | None) -> OpenerDirector:
    """Return an opener of http, https and data alone: redirects lead to no file and no FTP server."""
    opener = OpenerDirector()
    if limits.check_host is None:
        opener.add_handler(ProxyHandler())
    opener.add_handler(_LimitedHTTPHandler(limits))
    opener.add_handler(_LimitedHTTPSHandler(limits))
    opener.add_handler(_CheckedRedirects(check_redirect) if check_redirect else HTTPRedirectHandler())
    for kind in (DataHandler, HTTPErrorProcessor, HTTPDefaultErrorHandler, UnknownHandler):
        opener.add_handler(kind())
    return opener


def _as_ascii(address: str) -> str:
    """Quote blanks and letters beyond ASCII, as browsers do; escapes that are there stay."""
    if address[:5].lower() == "data:":
        return address
    parts = urlsplit(address.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (quote(part, safe="%/:=&?~#+!$,;'@()*[]") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme.lower(), host, path, query, ""))


__all__ = [
    "MAX_IMAGE_BYTES",
    "check_size",
    "download_image",
    "is_address",
    "is_image_path",
    "naming",
    "open_image",
]
