"""One way in: a CLIP and its processor from a published name, a checkpoint file, a folder, or the Hub."""

import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedModel,
)

from . import registration  # noqa: F401 (the Auto classes have to know ours)
from .exported.manifest import is_exported
from .model.modeling_hf_clip import HFCLIPModel, HFCLIPTextModelWithProjection
from .openai.errors import CheckpointError
from .openai.published import CHECKPOINT_SUFFIXES, CHECKPOINTS, HUB_PREFIX, OPEN_CLIP_CONFIG
from .utils.hardware import fastest_dtype, warn_if_slow

TEXT_TOWERS = {"hf_clip": HFCLIPTextModelWithProjection, "clip": CLIPTextModelWithProjection}
# a misspelled ViT-B/32 must not become the repository of whoever takes the name ViT-B on the Hub
NAMESPACES = {name.split("/")[0].lower() for name in CHECKPOINTS if "/" in name}


def load_clip(
    source: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | Literal["fastest"] | None = None,
    optimize: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    cache_dir: str | os.PathLike | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a CLIP, in evaluation mode, and its processor.

    An existing path comes first, then the nine names, then the Hub, which is not asked for one of the nine.

    Args:
        source: One of OpenAI's nine names, such as "RN50" or "ViT-B/32" (downloaded once, checked by its SHA-256); a
            checkpoint file in the original's key layout (`.pt`, or safetensors); a folder that `save_pretrained`,
            `hf-clip convert` or `export_clip` wrote; a folder of transformers' own CLIP; or a Hub id, OWNER/NAME or
            OWNER/NAME@REVISION.
        device: Where to compute. For an exported folder one that its runtime was installed for.
        dtype: What to compute in, float32 unless the folder says otherwise. float16 of a name or file is the original's
            mix on a GPU. Of an exported folder, float16 picks the fp16 files and int8 the q8 files. "fastest" takes
            what the device is fastest in: float16 on CUDA, bfloat16 on a CPU with instructions for it, else float32.
        optimize: Call the model's `optimize_for_inference()`.
        trust_remote_code: Run code that comes with the repository.
        revision: Branch, tag or commit of a Hub repository; it pins the repository's code as well.
        token: Access token for the Hub, or True for the one that `hf auth login` stored.
        subfolder: Where the model lies inside the folder or the repository.
        cache_dir: Where downloads are kept: `$HF_CLIP_CACHE` or `~/.cache/clip` for the nine names, the Hub's cache for
            an id, unless given.

    Returns:
        The model and the processor: HFCLIPModel and HFCLIPProcessor for names and files, what the folder names
        otherwise, and HFCLIPExportedModel for an exported folder.

    Raises:
        FileNotFoundError: There is no such file or folder.
        CheckpointError: The source is no CLIP, or none of the kinds above (a ValueError).
        DownloadError: One of the nine could not be downloaded.
        ValueError: An option does not apply to this kind of source, or an exported folder lacks what is asked for.

    Example:
        >>> model, processor = load_clip("RN50")
    """
    source, hub = _resolve(source, revision, token, subfolder, cache_dir)
    if is_exported(source):
        return _load_exported(source, device, dtype, optimize)
    if dtype == "fastest":
        dtype = fastest_dtype(device)[0]
    _check_dtype(source, dtype)
    warn_if_slow(dtype, device)
    options = {} if dtype is None else {"dtype": dtype}
    if hub is None:
        model, processor = _load_checkpoint(source, HFCLIPModel, cache_dir, **options)
    else:
        hub["trust_remote_code"] = trust_remote_code
        model = AutoModel.from_pretrained(source, **options, **hub)
        processor = AutoProcessor.from_pretrained(source, **hub)
        _record_revision(model, hub)
    model = model.eval() if device is None else model.eval().to(device)
    if optimize:
        if not hasattr(model, "optimize_for_inference"):
            raise ValueError(
                f"{type(model).__name__} has no optimize_for_inference(): leave optimize off, or convert the "
                "checkpoint to HFCLIPModel"
            )
        model.optimize_for_inference()
    return model, processor


def load_text_tower(
    source: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    cache_dir: str | os.PathLike | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load the text tower with its projection, in evaluation mode, and the tokenizer, from any source of `load_clip`.

    The vision tower is not read. A model of another type than CLIP, and an exported one, is loaded as a whole with its
    processor.
    """
    resolved, hub = _resolve(source, revision, token, subfolder, cache_dir)
    if hub is None:
        _check_dtype(resolved, dtype)
        warn_if_slow(dtype, device)
        model, processor = _load_checkpoint(resolved, HFCLIPTextModelWithProjection, cache_dir, dtype=dtype)
        return (model if device is None else model.to(device)), processor.tokenizer
    hub["trust_remote_code"] = trust_remote_code
    config = None if is_exported(resolved) else AutoConfig.from_pretrained(resolved, **hub)
    if config is None or config.model_type not in TEXT_TOWERS:
        return load_clip(resolved, device=device, dtype=dtype, **hub)
    _check_dtype(resolved, dtype)
    warn_if_slow(dtype, device)
    model = TEXT_TOWERS[config.model_type].from_pretrained(resolved, dtype=dtype, **hub).eval()
    tokenizer = AutoTokenizer.from_pretrained(resolved, **hub)
    _record_revision(model, hub)
    return (model if device is None else model.to(device)), tokenizer


def is_checkpoint(source: str | os.PathLike) -> bool:
    """Return True if `source` is a checkpoint file or one of the nine names, False if it is a folder or a Hub id.

    Raises:
        FileNotFoundError: It is a path, and nothing is there.
        CheckpointError: It is none of the four, with the nearest of the nine names.
    """
    source = os.fspath(source)
    if not source:
        raise CheckpointError("source is empty: give a name, a file, a folder or a Hub id")
    path = Path(source).expanduser()
    if path.is_dir():
        from .openai.timm_tower import is_timm

        if is_timm(path):
            raise CheckpointError(f"{source} is an image tower of timm: convert it first, by hf-clip convert")
        # open_clip's layout, unless transformers' files lie in the same folder
        return (path / OPEN_CLIP_CONFIG).is_file() and not (path / "config.json").is_file()
    if path.exists() or source in CHECKPOINTS or source.startswith(HUB_PREFIX):
        return True
    repository = source.partition("@")[0]
    is_path = source.startswith((".", "~")) or bool(path.anchor)  # C:\ and \\server on Windows
    if is_path or repository.count("/") > 1 or source.endswith(CHECKPOINT_SUFFIXES):
        raise FileNotFoundError(f"there is no file or folder {source}")
    owner = repository.partition("/")[0]
    if owner.lower() in NAMESPACES or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source):
        from .openai.download import resolve_checkpoint

        resolve_checkpoint(source)  # raises, with the nearest of the nine names
    return False


def _resolve(
    source: str | os.PathLike,
    revision: str | None,
    token: str | bool | None,
    subfolder: str,
    cache_dir: str | os.PathLike | None,
) -> tuple[str, dict[str, Any] | None]:
    """Return the source as text, and the keywords for `from_pretrained`; None for a checkpoint file or a name."""
    source = os.fspath(source)
    if is_checkpoint(source):
        given = {"revision": revision, "subfolder": subfolder}
        if unused := [name for name, value in given.items() if value]:
            raise ValueError(f"{source} is one checkpoint file and has no {unused[0]}: leave {unused[0]} off")
        return source, None
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision:
            raise ValueError(f"{source} is a folder and has no revision: leave revision off")
        source, subfolder = os.fspath(folder / subfolder), ""
        if not os.path.isdir(source):
            raise FileNotFoundError(f"there is no folder {source}")
    else:
        repository, _, named = source.partition("@")
        if named and revision not in (None, named):
            raise ValueError(f"{source} names a revision, and revision is {revision!r}: give one of the two")
        source, revision = repository, named or revision
    options = {"revision": revision, "token": token, "subfolder": subfolder, "cache_dir": cache_dir}
    return source, {name: value for name, value in options.items() if value not in (None, "")}


def _record_revision(model: PreTrainedModel, hub: dict[str, Any]) -> None:
    """Put the revision into the model's name, which is recorded with embeddings, to load the same model by later."""
    if revision := hub.get("revision"):
        model.config.name_or_path = f"{model.config.name_or_path}@{revision}"


def _load_checkpoint(
    source: str, model_class: type[PreTrainedModel], cache_dir: str | os.PathLike | None, **options: Any
) -> tuple[PreTrainedModel, Any]:
    from .openai.convert import load_checkpoint

    return load_checkpoint(source, model_class, cache_dir=cache_dir, **options)


def _check_dtype(source: str, dtype: torch.dtype | None) -> None:
    if isinstance(dtype, str):
        raise ValueError(f"dtype is {dtype!r}: choose a dtype of torch, or 'fastest'")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(
            f"{source} cannot compute in {dtype}, exported folders have 8-bit files: export it with --precision q8"
        )


def _load_exported(
    directory: str, device: str | torch.device | None, dtype: torch.dtype | str | None, optimize: bool
) -> tuple[Any, Any]:
    from .exported.model import precision_for
    from .exported.tensors import HFCLIPExportedModel, load_exported_processor

    precision = precision_for(directory, None if dtype is None else str(dtype), optimize)
    return HFCLIPExportedModel(directory, precision, device), load_exported_processor(directory)


__all__ = ["is_checkpoint", "load_clip", "load_text_tower"]
