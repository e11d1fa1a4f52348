"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike, mark: str = "") -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends and is deleted if the block fails.

    It lies beside `path`, by the name of this process; with `mark` by that, so that what a killed process has left is
    written over. Only for paths that no two processes write at once.
    """
    path = Path(path)
    work = path.with_name(f".{path.name}.{mark or os.getpid()}")
    try:
        yield work
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


__all__ = ["replacing"]
