"""Outputs that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(path: Path, force: bool) -> None:
    """Raise OSError for an output that may not be replaced or cannot be written, before any work is done."""
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not force:
        raise FileExistsError(f"{path} exists: choose another output, or pass --force to replace it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written: no permission to write in {folder}")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; it takes the place of `path` when the block ends, and is deleted if the block fails."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield work
        _share(work)
        old = work.with_name(f"{work.name}.old")
        if path.exists():
            path.rename(old)
        work.rename(path)
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _share(directory: Path) -> None:
    """Give what temporary files and folders keep private the permissions of any other."""
    umask = os.umask(0)
    os.umask(umask)
    directory.chmod(0o777 & ~umask)
    for file in directory.iterdir():
        file.chmod(0o666 & ~umask)
