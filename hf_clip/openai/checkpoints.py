"""The nine published checkpoints, and every kind of file that holds weights in the original's key layout."""

import difflib
import hashlib
import logging
import os
import pickle
import re
import shutil
import ssl
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

import torch
from filelock import FileLock, Timeout
from huggingface_hub.utils import tqdm
from safetensors.torch import load_file

from ..files import replacing
from .errors import CheckpointError, DownloadError
from .torchscript import read_archive

logger = logging.getLogger(__name__)

SOURCE_URL = "https://openaipublic.azureedge.net/clip/models"
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30
RETRIES = 3
BACKOFF_SECONDS = 1
STORAGE_ADVICE = "free some space or choose another folder with cache_dir= or HF_CLIP_CACHE"


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint; `repo_name` is what its converted repository is called."""

    name: str
    url: str
    sha256: str
    repo_name: str

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]


CHECKPOINTS = {
    name: Checkpoint(name, f"{SOURCE_URL}/{sha256}/{re.sub('[/@]', '-', name)}.pt", sha256, f"clip-{variant}")
    for name, variant, sha256 in [
        ("RN50", "rn50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
        ("RN101", "rn101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
        ("RN50x4", "rn50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
        ("RN50x16", "rn50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
        ("RN50x64", "rn50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
        ("ViT-B/32", "vit-base-patch32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        ("ViT-B/16", "vit-base-patch16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        ("ViT-L/14", "vit-large-patch14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        ("ViT-L/14@336px", "vit-large-patch14-336", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    ]
}


def resolve_checkpoint(source: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> Path:
    """The file behind one of the nine names (downloaded if need be) or behind a path."""
    source = os.fspath(source)
    if source in CHECKPOINTS:
        return download(source, cache_dir)
    path = Path(source).expanduser()
    if not path.exists():
        raise _unknown(source)
    return path


def _unknown(source: str) -> CheckpointError:
    def plain(text: str) -> str:
        return re.sub("[^a-z0-9]", "", text.lower())

    spellings = {plain(s): row.name for row in CHECKPOINTS.values() for s in (row.name, row.repo_name)}
    close = difflib.get_close_matches(plain(source), spellings, n=1, cutoff=0.7)
    hint = f"; did you mean {spellings[close[0]]!r}?" if close else ""
    return CheckpointError(f"{source!r} is neither a file nor one of {', '.join(CHECKPOINTS)}{hint}")


# --- downloading ------------------------------------------------------------------------------------------------------


def cached_file(checkpoint: Checkpoint, cache_dir: str | os.PathLike | None = None) -> Path:
    """Where the file of a checkpoint is kept, whether or not it is there."""
    return Path(cache_dir or os.environ.get("HF_CLIP_CACHE") or "~/.cache/clip").expanduser() / checkpoint.filename


def download(name: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """The file of one of the nine checkpoints, fetched unless the cache holds it with the right SHA-256.

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
            _fetch_verified(_address(checkpoint), checkpoint.sha256, partial)
            partial.replace(target)
    except OSError as error:
        raise DownloadError(f"cannot store {name} as {target} ({error.strerror or error}): {STORAGE_ADVICE}") from error
    return target


def _address(checkpoint: Checkpoint) -> str:
    mirror = os.environ.get("HF_CLIP_MIRROR") or SOURCE_URL
    if not mirror.startswith(("https://", "http://")):
        raise DownloadError(f"HF_CLIP_MIRROR is {mirror!r}; it must start with https:// or http://")
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
        web_page = _is_web_page(file.read(512))
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
    """Bring `partial` to its full length, over as many connections as it takes."""
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
                reason = error.reason if isinstance(error, URLError) else error
                permanent = isinstance(reason, ssl.SSLCertVerificationError)
            failures = 1 if file.tell() > start else failures + 1
            if permanent or failures > RETRIES:
                kept = f"; the {file.tell():,} bytes received are kept" if file.tell() else ""
                raise DownloadError(
                    f"could not download {url} ({reason}): check the network, HTTPS_PROXY and HF_CLIP_MIRROR, then try "
                    f"again{kept}"
                )
            logger.warning("%s: %s; trying again", url, reason)
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))


def _receive(url: str, file: BinaryIO, label: str) -> None:
    """Append one response to `file`; a server that ignores the range asked for starts it over."""
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


def file_sha256(path: Path) -> str:
    """The hexadecimal digest of a file, with a progress bar where it takes over two seconds."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(desc=f"verifying {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, delay=2) as bar,
    ):
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the original's keys, on the CPU, in the dtypes they were saved in.

    Reads TorchScript archives as published, state dicts of `torch.save` (also nested under `state_dict`,
    `model_state_dict` or `model`, also with wrapper prefixes such as `module.`) and safetensors, told apart by their
    content. No code of the file is run. Zip archives and safetensors are memory-mapped: keep the file as it is while
    the tensors are in use. Raises `CheckpointError`, or `FileNotFoundError`.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory: pass a checkpoint file, or load the model by from_pretrained")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file: pass a checkpoint file")
    read = _reader(path)
    try:
        tensors = read(path)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # damaged bytes can make a parser raise anything
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {reason}): fetch it again") from error
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: expected a state dict")
    return _without_wrapper_prefix(path, tensors)


def _reader(path: Path) -> Callable[[Path], dict[str, torch.Tensor]]:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty: fetch it again")
    if head.startswith(b"PK"):
        return _read_zip
    if head.startswith(b"\x80"):
        return _read_torch_save
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return load_file
    if _is_web_page(head):
        raise CheckpointError(f"{path} is a web page: the download gave that instead of a checkpoint, fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer: run `git lfs pull` to fetch the file it stands for")
    raise CheckpointError(f"{path} is neither a TorchScript archive, nor a file of torch.save, nor safetensors")


def _is_web_page(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


def _read_zip(path: Path) -> dict[str, torch.Tensor]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): fetch it again") from error
    with archive:
        names = set(archive.namelist())
        roots = [name.removesuffix("/data.pkl") for name in names if re.fullmatch("[^/]+/data.pkl", name)]
        if len(roots) != 1:
            raise CheckpointError(f"{path} is a zip archive without a checkpoint in it (no data.pkl)")
        if f"{roots[0]}/constants.pkl" in names:
            return read_archive(path, archive, roots[0])
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    return _read_torch_save(path, mapped=stored)


def _read_torch_save(path: Path, mapped: bool = False) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if not refused:
            raise CheckpointError(f"{path} is damaged, or a pickle that torch.save did not write") from error
        raise CheckpointError(
            f"{path} holds Python objects ({refused[1]}), not only tensors, and loading those could run any code: "
            "if you trust it, save its weights alone with torch.save(model.state_dict(), PATH)"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a state dict")
    return _tensors(content)


def _tensors(content: dict) -> dict[str, torch.Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), dict):
            return _tensors(content[key])
    return {
        name: value.detach()
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def _without_wrapper_prefix(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop what DataParallel, torch.compile or a parent module put before the keys of the CLIP model."""
    wrapped = re.compile(r"((?:(?:module|model|clip|_orig_mod)\.)*)token_embedding\.weight")
    prefixes = [match[1] for name in tensors if (match := wrapped.fullmatch(name))]
    if not prefixes:
        return tensors
    stripped = {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items()}
    if len(prefixes) > 1 or len(stripped) < len(tensors):
        raise CheckpointError(f"{path} holds keys both with and without {prefixes[0]!r}: save the model to read alone")
    return stripped


# --- writing ----------------------------------------------------------------------------------------------------------


def write_state_dict(state_dict: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Save what the original's `clip.load(path)` loads; `path` appears, or is replaced, only when it is complete."""
    # torch.save writes the whole storage that a view is of
    tensors = {
        name: tensor.detach().clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor.detach()
        for name, tensor in state_dict.items()
    }
    with replacing(path) as work:
        torch.save(tensors, work)


__all__ = [
    "CHECKPOINTS",
    "Checkpoint",
    "cached_file",
    "download",
    "file_sha256",
    "read_checkpoint",
    "resolve_checkpoint",
    "write_state_dict",
]
