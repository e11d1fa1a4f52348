"""Image files and addresses, read within limits: a stranger's path or server must not hang or fill the machine."""

import io
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import (
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


def download_image(address: str, opener: OpenerDirector | None = None, most: int = MAX_IMAGE_BYTES) -> bytes:
    """Download an address, at most `most` bytes, in chunks and against the clock; busy servers are asked again."""
    deadline = time.monotonic() + MAX_SECONDS
    for pause in (*PAUSES, None):
        try:
            return _read_response(_as_ascii(address), deadline, opener or _opener(), most)
        except HTTPError as error:
            if error.code not in BUSY or pause is None:
                raise
            told = error.headers.get("Retry-After", "")
            seconds = float(told) if told.isdecimal() else pause
            if time.monotonic() + seconds > deadline:
                raise
            time.sleep(seconds)
    raise AssertionError  # the last attempt returns or raises


def _read_response(address: str, deadline: float, opener: OpenerDirector, most: int) -> bytes:
    # some sites turn urllib's own name away
    request, chunks, size = Request(address, headers={"User-Agent": "hf_clip"}), [], 0
    with opener.open(request, timeout=min(WAIT_SECONDS, max(0.1, deadline - time.monotonic()))) as response:
        read = getattr(response, "read1", response.read)  # read1 returns what has come, however little
        while chunk := read(CHUNK):
            chunks.append(chunk)
            size += len(chunk)
            check_size(size, most)
            if time.monotonic() > deadline:
                raise TimeoutError(f"it took over {MAX_SECONDS:.0f} seconds")
    return b"".join(chunks)


def _opener() -> OpenerDirector:
    """Return an opener of http, https and data alone: redirects lead to no file and no FTP server."""
    opener = OpenerDirector()
    kinds: tuple[Any, ...] = (ProxyHandler, HTTPHandler, HTTPSHandler, DataHandler)
    for kind in (*kinds, HTTPRedirectHandler, HTTPErrorProcessor, HTTPDefaultErrorHandler, UnknownHandler):
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
