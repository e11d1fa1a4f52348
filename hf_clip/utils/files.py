"""Write files and folders so that they appear complete or not at all."""

import errno
import hashlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHUNK_BYTES = 1 << 20
OLD = ".old"
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# as safetensors and torch.save put it
NO_ROOM_WORDS = re.compile(rf"os error ({'|'.join(map(str, NO_ROOM))})\)|enforce fail at inline_container")


@contextmanager
def replacing(path: str | os.PathLike, mark: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends, and is deleted if the block fails.

    Its name holds the process id, and the next run removes the leftovers of dead processes; or it holds `mark`, and the
    next run overwrites the leftover. Two processes must not write the same `path` at once with a `mark`.
    """
    path = Path(path)
    _remove_leftovers(path)
    work = path.with_name(f".{path.name}.{mark or os.getpid()}")
    try:
        with _explained(path):
            yield work
            work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def check_output(path: Path, force: bool, suffixes: Collection[str] = ()) -> None:
    """Raise an exception for an output that cannot be written or may not be replaced, before any work is done.

    Args:
        path: The file or folder to write.
        force: Allow an existing output to be replaced.
        suffixes: Those that the output may have, such as .json; any if there are none.

    Raises:
        ValueError: The suffix is another.
        OSError: The output exists, or its folder cannot be written to.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} should end in {', '.join(sorted(suffixes))}")
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not force:
        raise FileExistsError(f"{path} exists: choose another output, or pass --force to replace it")
    if path.is_dir() and suffixes:
        raise IsADirectoryError(f"{path} is a folder: choose another output")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written: no permission to write in {folder}")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory; it replaces `path` when the block ends, and is deleted if the block fails.

    Where the system can exchange two names, `path` holds the old or the new contents at any moment. Elsewhere, a
    process killed between two renames leaves the old contents under a hidden name, which the next run puts back; but
    not on Windows, where leftovers stay, because nothing tells whether their process lives.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.{os.getpid()}-", dir=path.parent))
    old = work.with_name(f"{work.name}{OLD}")
    try:
        with _held(work), _explained(path):
            yield work
            _share(work)
            if not path.exists():
                work.rename(path)
            elif not _exchange(work, path):
                path.rename(old)
                work.rename(path)
    finally:
        for leftover in (work, old):
            _remove(leftover)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a full disk, for which each library has an exception of its own, into an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in NO_ROOM and not NO_ROOM_WORDS.search(str(error)):
            raise
        free = shutil.disk_usage(path.absolute().parent).free
        raise OSError(
            f"{path} cannot be written: there is no room for it ({free:,} bytes are free on its disk), make some or "
            "choose another folder"
        ) from error


def _remove_leftovers(path: Path) -> None:
    """Remove the leftovers beside `path` of processes that died while they wrote it."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(-\w+?)?({re.escape(OLD)}|\.new)?")
    try:
        siblings = list(os.scandir(path.parent))
    except OSError:  # no folder yet, or one that cannot be listed
        return
    for entry in siblings:
        found = name.fullmatch(entry.name)
        if found and not _is_alive(int(found[1])) and not _is_held(entry.path):
            if found[3] == OLD and not path.exists():  # killed between the two renames
                os.rename(entry.path, path)
            else:
                _remove(Path(entry.path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Lock a directory: a process id from another container does not tell who is alive."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_held(path: str) -> bool:
    if fcntl is None:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except OSError:
        return True
    return False


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return False where the system or the file system cannot."""
    import ctypes

    exchange, here = 2, -100  # RENAME_EXCHANGE, AT_FDCWD
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux, or an old C library
        return False
    return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def exit_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into exceptions, so that unfinished outputs are removed."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # nohup ignores SIGHUP, and a program that embeds hf_clip may have its own handler
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with suppress(ValueError):  # not the main thread
                signal.signal(number, _exit)


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _share(directory: Path) -> None:
    """Widen the permissions of temporary files and folders, which are private, to the umask."""
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


def file_record(path: Path) -> dict[str, Any]:
    """Return the size, modification time and SHA-256 of a file, by which `matches_record` knows it again."""
    stat = path.stat()
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "sha256": file_sha256(path)}


def matches_record(path: Path, record: Mapping[str, Any]) -> bool:
    """Return True if a file is the one that a `file_record` describes, or a copy; only a copy is read."""
    stat = path.stat()
    if stat.st_size != record.get("bytes"):
        return False
    return stat.st_mtime_ns == record.get("modified_ns") or file_sha256(path) == record.get("sha256")


def is_web_page(head: bytes) -> bool:
    """Return True if a file that starts with `head` is HTML or XML, such as the page of a login."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


__all__ = [
    "CHUNK_BYTES",
    "check_output",
    "exit_on_signals",
    "file_record",
    "file_sha256",
    "is_web_page",
    "matches_record",
    "new_directory",
    "replacing",
]
