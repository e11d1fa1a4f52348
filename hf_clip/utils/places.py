"""Files and folders at a path or an address such as s3://bucket/folder, through fsspec."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .files import replacing
from .packages import MissingPackageError, install_command
from .text import first_line


class Place(NamedTuple):
    """A path on a file system of fsspec."""

    fs: Any
    path: str
    protocol: str = "file"

    @property
    def is_local(self) -> bool:
        return self.protocol == "file"

    def __truediv__(self, name: str) -> "Place":
        return self._replace(path=f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.protocol}://{self.path.lstrip('/')}"


def place_at(address: str) -> Place:
    """Open the file system of a path or an address.

    Raises:
        MissingPackageError: The package for this kind of address is not installed.
        ValueError: No file system is known for the address.
    """
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0] if "://" in address else "file"
    try:
        fs, path = url_to_fs(address)
    except ImportError as error:
        raise MissingPackageError(f"{address} needs another package: {install_command('remote')} ({error})") from error
    return Place(fs, path, protocol)


@contextmanager
def reaching(place: Place) -> Iterator[None]:
    """Turn the exceptions of object-store clients, such as for missing credentials, into ConnectionError."""
    try:
        yield
    except Exception as error:
        if place.is_local or (isinstance(error, OSError | ValueError) and not isinstance(error, PermissionError)):
            raise
        raise ConnectionError(
            f"cannot reach {place} ({first_line(error)}): check its address and your credentials"
        ) from error


@contextmanager
def writing(place: Place) -> Iterator[Any]:
    """Yield an open file that appears at `place` when the block ends; nothing is left if the block fails."""
    if place.is_local:
        path = Path(place.path)
        with replacing(path, f"{os.getpid()}.new") as work, work.open("wb") as file:
            yield file
    else:
        buffer = io.BytesIO()  # closing a remote file would publish what is there
        yield buffer
        place.fs.pipe_file(place.path, buffer.getvalue())


__all__ = ["Place", "place_at", "reaching", "writing"]
