"""Readers and a writer of the file formats in which CLIP weights are passed on, all under the original's keys."""

import logging
import mmap
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..utils.files import is_web_page, replacing
from ..utils.text import listing
from .archives import Budget, check_members
from .contents import find_clip
from .errors import CheckpointError
from .saved_modules import SavedModule, reading_saved_modules
from .torchscript import read_archive

logger = logging.getLogger(__name__)

# --- reading ----------------------------------------------------------------------------------------------------------


def read_checkpoint(
    path: str | os.PathLike, prefix: str | None = None, verified: bool = False
) -> dict[str, torch.Tensor]:
    """Read a checkpoint's tensors under the original's keys, on the CPU, in the dtypes they were saved in.

    Reads TorchScript archives as published, state dicts and whole models of `torch.save`, and safetensors, told apart
    by their content.
    No code of the file is run. Zip archives and safetensors are memory-mapped: keep the file as it is while the tensors
    are in use. The one CLIP inside is found wherever it lies; a warning names what is ignored beside it.

    Args:
        path: The file.
        prefix: The prefix of the keys to read where a file holds several CLIPs, such as `ema.`.
        verified: The file's SHA-256 is known to be right, so that its checksums need not be computed.

    Raises:
        CheckpointError: The file is damaged, no checkpoint, or another kind of model, which is named.
        FileNotFoundError: There is no such file.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory: pass a checkpoint file, or load the model by from_pretrained")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a regular file: pass a checkpoint file")
    read = _reader(path, verified)
    try:
        tensors = read(path)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # damaged bytes can make a parser raise anything
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {reason}): fetch it again") from error
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: expected a state dict")
    Budget(path).check_size(sum(tensor.nbytes for tensor in _plain(path, tensors).values()))
    clip, ignored = find_clip(path, tensors, prefix)
    if ignored:
        logger.warning("%s: ignored beside the CLIP: %s", path, listing(ignored))
    return clip


def _plain(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for key, tensor in tensors.items():
        kind = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else None
        if tensor.layout != torch.strided:
            kind = "sparse"
        if kind:
            raise CheckpointError(f"{path} holds a {kind} tensor, {key}: save the model's plain weights")
    return tensors


def _reader(path: Path, verified: bool) -> Callable[[Path], dict[str, torch.Tensor]]:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path} is empty: fetch it again")
    if head.startswith(b"PK"):
        return partial(_read_zip, verified=verified)
    if head.startswith(b"\x80"):
        return _read_legacy
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 27:
        return load_file
    if is_web_page(head):
        raise CheckpointError(f"{path} is a web page: the download gave that instead of a checkpoint, fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer: run `git lfs pull` to fetch the file it stands for")
    raise CheckpointError(f"{path} is neither a TorchScript archive, nor a file of torch.save, nor safetensors")


def _read_zip(path: Path, verified: bool) -> dict[str, torch.Tensor]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error}): fetch it again") from error
    with archive, path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # tensors keep it open
        check_members(path, archive, mapped, checksums=not verified)
        names = set(archive.namelist())
        roots = [name.removesuffix("/data.pkl") for name in names if re.fullmatch("[^/]+/data.pkl", name)]
        if len(roots) != 1:
            raise CheckpointError(f"{path} is a zip archive without a checkpoint in it (no data.pkl)")
        if f"{roots[0]}/constants.pkl" in names:
            return read_archive(path, archive, mapped, roots[0])
        _check_pickle(path, archive.read(f"{roots[0]}/data.pkl"))
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
    with reading_saved_modules(path):
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
            "if you trust it, load it with torch.load(PATH, weights_only=False) where its code is installed, and save "
            "the weights alone, with torch.save(content['state_dict'], NEW) or torch.save(model.state_dict(), NEW)"
        ) from error
    if isinstance(content, SavedModule):
        content = content.contents()
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a state dict")
    return _tensors(content, Budget(path))


def _read_legacy(path: Path) -> dict[str, torch.Tensor]:
    """Read the one pickle, without a zip archive around it, that torch.save wrote before PyTorch 1.6."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        _check_pickle(path, mapped)
    return _read_torch_save(path)


def _check_pickle(path: Path, content: bytes | mmap.mmap) -> None:
    # torch.load lets a pickle call bytearray(n), which fills n bytes
    if content.find(b"cbuiltins\nbytearray\n") >= 0:
        raise CheckpointError(f"{path} holds a bytearray, which no state dict needs: save the weights alone")


def _tensors(content: dict, budget: Budget, prefix: str = "") -> dict[str, torch.Tensor]:
    """Flatten nested dicts; each tensor's key is the dotted path to it."""
    tensors = {}
    for name, value in content.items():
        budget.visit(f"{prefix}{name}" if isinstance(name, str) else prefix)
        if isinstance(value, SavedModule):
            value = value.contents()
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value.detach()
        elif isinstance(name, str) and isinstance(value, dict):
            tensors |= _tensors(value, budget, f"{prefix}{name}.")
    return tensors


# --- writing ----------------------------------------------------------------------------------------------------------


def write_state_dict(state_dict: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Write a file that the original's `clip.load(path)` reads; `path` changes only once the file is complete."""
    with replacing(path) as work:
        torch.save(with_own_storage(state_dict), work)


def with_own_storage(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy the tensors that are views of others, so that each is contiguous and alone in its storage.

    safetensors refuses strides and shared memory, and torch.save writes the whole storage that a view belongs to.
    Fine-tunes on GPUs have both: channels_last convolutions, expanded and transposed buffers, tied weights.
    """
    used: set[int] = set()
    tensors = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() > tensor.nbytes or storage.data_ptr() in used:
            tensor = tensor.clone()
        used.add(storage.data_ptr())
        tensors[name] = tensor
    return tensors


__all__ = ["read_checkpoint", "with_own_storage", "write_state_dict"]
