"""Fetch the nine published checkpoints, verify their SHA-256 and keep them in a cache."""

import difflib
import logging
import os
import re
import shutil
import ssl
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from filelock import FileLock, Timeout
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as HubHTTPError
from huggingface_hub.utils import tqdm

from ..utils.files import CHUNK_BYTES, file_sha256, is_web_page
from ..utils.text import first_line
from .errors import CheckpointError, DownloadError
from .published import CHECKPOINTS, HUB_PREFIX, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, SOURCE_URL, Checkpoint

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30
RETRIES = 3
BACKOFF_SECONDS = 1
STORAGE_ADVICE = "free some space or choose another folder with cache_dir= or HF_CLIP_CACHE"


class _ServerError(DownloadError):
    """Raised where the server is the reason, so that another one can be named."""


def resolve_checkpoint(source: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> Path:
    """Return the file of a checkpoint.

    Args:
        source: One of the nine names or `hf-hub:ORG/NAME`, which are downloaded if need be; a file; or a folder in the
            layout of open_clip. Beside the weights of the last two lies an open_clip_config.json.
        cache_dir: Where downloads are kept.

    Raises:
        CheckpointError: It is none of these.
        DownloadError: The download failed.
    """
    source = os.fspath(source)
    if source in CHECKPOINTS:
        return download(source, cache_dir)
    if source.startswith(HUB_PREFIX):
        return _from_hub(source.removeprefix(HUB_PREFIX), cache_dir)
    path = Path(source).expanduser()
    if not path.exists():
        raise _unknown(source)
    if (path / OPEN_CLIP_CONFIG).is_file():
        weights = [path / name for name in OPEN_CLIP_WEIGHTS if (path / name).is_file()]
        if not weights:
            raise CheckpointError(
                f"{path} has {OPEN_CLIP_CONFIG} and none of {', '.join(OPEN_CLIP_WEIGHTS)}: fetch one"
            )
        return weights[0]
    return path


def _from_hub(name: str, cache_dir: str | os.PathLike | None) -> Path:
    """Fetch the configuration and the weights of a repository in open_clip's layout, named ORG/NAME or ORG/NAME@REV."""
    repository, _, revision = name.partition("@")

    def fetch(file: str) -> str:
        return hf_hub_download(repository, file, revision=revision or None, cache_dir=cache_dir)

    try:
        fetch(OPEN_CLIP_CONFIG)
        for weights in OPEN_CLIP_WEIGHTS:
            with suppress(EntryNotFoundError):
                return Path(fetch(weights))
    except GatedRepoError as error:
        raise DownloadError(f"{name} is gated: accept its terms on the Hub, then run `hf auth login`") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DownloadError(f"the Hub has no {name}, or it is private: run `hf auth login` if it is yours") from error
    except EntryNotFoundError as error:
        raise DownloadError(
            f"{name} has no {OPEN_CLIP_CONFIG}, so it is not in the layout of open_clip: pass it without {HUB_PREFIX}"
        ) from error
    except (HFValidationError, HubHTTPError, OSError, ValueError) as error:
        raise DownloadError(f"cannot fetch {name} from the Hub ({first_line(error)})") from error
    raise DownloadError(f"{name} has none of {', '.join(OPEN_CLIP_WEIGHTS)}: its weights are in another format")


def _unknown(source: str) -> CheckpointError:
    def plain(text: str) -> str:
        return re.sub("[^a-z0-9]", "", text.lower())

    spellings = {plain(s): row.name for row in CHECKPOINTS.values() for s in (row.name, row.repo_name)}
    close = difflib.get_close_matches(plain(source), spellings, n=1, cutoff=0.7)
    hint = f"; did you mean {spellings[close[0]]!r}?" if close else ""
    return CheckpointError(f"{source!r} is neither a file nor one of {', '.join(CHECKPOINTS)}{hint}")


def cached_file(checkpoint: Checkpoint, cache_dir: str | os.PathLike | None = None) -> Path:
    """Return the path of a checkpoint in the cache, whether or not the file exists.

    Raises:
        DownloadError: The place is in the home folder, and there is none.
    """
    folder = Path(cache_dir or os.environ.get("HF_CLIP_CACHE") or "~/.cache/clip")
    try:
        return folder.expanduser() / checkpoint.filename
    except RuntimeError as error:
        raise DownloadError(
            f"there is no home folder to keep {checkpoint.name} in: choose a folder with download_root=, cache_dir= or "
            "HF_CLIP_CACHE"
        ) from error


def download(name: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """Return the file of one of the nine checkpoints, fetched unless the cache holds it with the right SHA-256.

    The cache is `cache_dir`, else `$HF_CLIP_CACHE`, else `~/.cache/clip`, where the original keeps its downloads.
    `$HF_CLIP_MIRROR` stands in for `https://openaipublic.azureedge.net/clip/models`; proxies are read from the
    environment as usual. An interrupted download goes on where it stopped. Raises `DownloadError`.
    """
    if name not in CHECKPOINTS:
        raise _unknown(name)
    checkpoint = CHECKPOINTS[name]
    target = cached_file(checkpoint, cache_dir)
    try:
        if _holds(target, checkpoint.sha256):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if _holds(target, checkpoint.sha256):  # another process was faster
                return target
            if target.exists():
                warnings.warn(f"{target} does not have the SHA-256 of {name}: downloading it again", stacklevel=2)
            partial = target.with_name(f"{target.name}.incomplete")
            try:
                _fetch_verified(_address(checkpoint), checkpoint.sha256, partial)
            except _ServerError as error:
                raise DownloadError(f"{error}; {checkpoint.mirror} has OpenAI's weights too") from error
            partial.replace(target)
    except OSError as error:
        raise DownloadError(f"cannot store {name} as {target} ({error.strerror or error}): {STORAGE_ADVICE}") from error
    return target


def _address(checkpoint: Checkpoint) -> str:
    mirror = os.environ.get("HF_CLIP_MIRROR") or SOURCE_URL
    if not mirror.startswith(("https://", "http://")):
        raise DownloadError(f"HF_CLIP_MIRROR is {mirror!r}: start it with https:// or http://")
    return checkpoint.url.replace(SOURCE_URL, mirror.rstrip("/"))


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        logger.warning("another process is downloading %s: waiting for it", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_verified(url: str, sha256: str, partial: Path) -> None:
    resumed = partial.exists() and partial.stat().st_size > 0
    _fetch(url, partial)
    got = file_sha256(partial)
    if got != sha256 and resumed:  # what was found may have been the start of another file
        partial.unlink()
        _fetch(url, partial)
        got = file_sha256(partial)
    if got == sha256:
        return
    with partial.open("rb") as file:
        web_page = is_web_page(file.read(512))
    partial.unlink()
    if web_page:
        raise DownloadError(
            f"{url} gave a web page instead of a checkpoint: is a login, a proxy or a mirror in the way?"
        )
    raise DownloadError(
        f"{url} gave a file with SHA-256 {got} where {sha256} was expected; {partial} was deleted: try again, and "
        "check HF_CLIP_MIRROR if it is set"
    )


def _fetch(url: str, partial: Path) -> None:
    """Download to the end of `partial`, resuming after lost connections."""
    failures = 0
    with partial.open("ab") as file:
        while True:
            start = file.tell()
            try:
                return _receive(url, file, partial.name.removesuffix(".incomplete"))
            except HTTPError as error:
                if error.code == 416 and start:  # nothing after `start`: the file was complete, or is another's
                    return
                reason = f"HTTP status {error.code} {error.reason}"
                permanent = error.code < 500 and error.code not in (408, 429)
            except (OSError, HTTPException) as error:
                cause = error.reason if isinstance(error, URLError) else error
                permanent, reason = isinstance(cause, ssl.SSLCertVerificationError), str(cause)
            failures = 1 if file.tell() > start else failures + 1
            if permanent or failures > RETRIES:
                kept = f"; the {file.tell():,} bytes received are kept" if file.tell() else ""
                raise _ServerError(
                    f"could not download {url} ({reason}): check the network, HTTPS_PROXY and HF_CLIP_MIRROR, then try "
                    f"again{kept}"
                )
            logger.warning("%s: %s; trying again", url, reason)
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))


def _receive(url: str, file: BinaryIO, label: str) -> None:
    """Append one response to `file`; if the server ignores the Range header, start over."""
    start = file.tell()
    request = Request(url, headers={"User-Agent": "hf_clip"} | ({"Range": f"bytes={start}-"} if start else {}))
    # not urlopen: its opener keeps the proxies of its first call
    with build_opener().open(request, timeout=TIMEOUT_SECONDS) as response:
        if start and response.status != 206:
            start = file.seek(0)
            file.truncate()
        length = response.headers.get("Content-Length", "")
        length = int(length) if length.isdigit() else None
        free = shutil.disk_usage(Path(file.name).parent).free
        if length is not None and length > free:
            raise DownloadError(f"{file.name} needs {length:,} more bytes, its disk has {free:,}: {STORAGE_ADVICE}")
        total = None if length is None else start + length
        with tqdm(desc=label, initial=start, total=total, unit="B", unit_scale=True) as bar:
            while chunk := response.read1(CHUNK_BYTES):
                _write(file, chunk)
                bar.update(len(chunk))
        if total is not None and file.tell() < total:
            raise ConnectionError(f"the connection was lost after {file.tell():,} of {total:,} bytes")


def _write(file: BinaryIO, chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:  # a full disk is not a lost connection: no retry
        raise DownloadError(f"cannot write {file.name} ({error.strerror}): {STORAGE_ADVICE}") from error


def _holds(path: Path, sha256: str) -> bool:
    if path.exists() and not path.is_file():
        raise DownloadError(f"{path} is not a regular file: move it away")
    return path.exists() and file_sha256(path) == sha256


__all__ = ["cached_file", "download", "resolve_checkpoint"]
