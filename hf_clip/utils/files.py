"""Write files and folders so that they appear complete or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 1 << 20


@contextmanager
def replacing(path: str | os.PathLike, mark: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends, and is deleted if the block fails.

    Its name holds the process id, or `mark`, so that the next run overwrites the leftover of a killed one. Two
    processes must not write the same `path` at once with a `mark`.
    """
    path = Path(path)
    work = path.with_name(f".{path.name}.{mark or os.getpid()}")
    try:
        yield work
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


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
    """Yield a temporary directory; it replaces `path` when the block ends, and is deleted if the block fails."""
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
    """Give temporary files and folders, which are private, the permissions that the umask allows."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (directory, *directory.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; a progress bar appears after two seconds."""
    from huggingface_hub.utils import tqdm

    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(desc=f"verifying {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, delay=2) as bar,
    ):
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def is_web_page(head: bytes) -> bool:
    """Return True if a file that starts with `head` is HTML or XML, such as the page of a login."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


__all__ = ["CHUNK_BYTES", "check_output", "file_sha256", "is_web_page", "new_directory", "replacing"]
