"""The names of the original's `clip/clip.py`, including the private ones that other projects use."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..model.modeling_hf_clip import HFCLIPModel
from ..model.packed_texts_hf_clip import TextTooLongError
from .download import download, resolve_checkpoint
from .errors import CheckpointError, DownloadError, check_converted
from .model import CLIP, build_model, build_variant, from_hf_model
from .optimized import OptimizedCLIP
from .original import read_original
from .pixels import recorded_pixels
from .published import CHECKPOINTS
from .simple_tokenizer import SimpleTokenizer, shared_tokenizer

logger = logging.getLogger(__name__)

DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_HALF, _FLOAT = 5, 6  # how a TorchScript graph writes float16 and float32


BICUBIC = InterpolationMode.BICUBIC


class LoadError(CheckpointError, RuntimeError):
    """Raised for a name, file or folder that no model can be loaded from; a RuntimeError as in the original."""


class TooLongError(TextTooLongError, RuntimeError):
    """Raised for a text that does not fit; a RuntimeError as in the original."""


_MODELS = {name: checkpoint.url for name, checkpoint in CHECKPOINTS.items()}


def available_models() -> list[str]:
    """Return the names of the nine published checkpoints."""
    return list(CHECKPOINTS)


def _download(url: str, root: str | os.PathLike | None = None) -> str:
    """Return the file behind one of the addresses in `_MODELS`, fetched into `root` and verified.

    Raises DownloadError (a RuntimeError).
    """
    name = next((name for name, known in _MODELS.items() if known == url), None)
    if name is None:
        raise DownloadError(f"{url} is no address of the nine checkpoints: take one of clip._MODELS")
    return str(download(name, root))


def load(
    name: str | os.PathLike,
    device: str | torch.device | None = DEFAULT_DEVICE,
    jit: bool = False,
    download_root: str | os.PathLike | None = None,
    *,
    optimize: bool = False,
) -> tuple[CLIP | OptimizedCLIP | torch.jit.ScriptModule, Callable[[Image.Image], Tensor]]:
    """Load a model, in evaluation mode, and the transform from a PIL image to the pixels (3, R, R) it takes.

    On the CPU the model computes in fp32, on any other device in the original's mix of fp16 and fp32. As in the
    original, a file's weights go through that mix: an fp32 checkpoint is rounded. A folder's are not, on the CPU.

    Args:
        name: One of `available_models()`; a file that `read_checkpoint` reads; a converted folder or a Hub id.
        device: Where to put the model; a GPU if there is one.
        jit: Give the file's own TorchScript module, with its device and dtype constants set for `device`. This RUNS
            THE CODE IN THE FILE: only for files you trust. Those of the nine names were checked against their SHA-256.
        download_root: Where the nine are kept, `~/.cache/clip` unless given; for a Hub id, the Hub's cache.
        optimize: Give an `OptimizedCLIP`, which only encodes: faster, most of all for short texts, and equal up to
            rounding.

    Returns:
        The model and its transform.

    Raises:
        LoadError: Nothing can be loaded from `name` (a RuntimeError and a ValueError).
        DownloadError: The download failed (a RuntimeError).
    """
    name, device = os.fspath(name), torch.device(DEFAULT_DEVICE if device is None else device)
    try:
        if name not in CHECKPOINTS and not Path(name).expanduser().is_file():
            model, pixels = _load_repository(name, device, jit, download_root), None
        else:
            path = resolve_checkpoint(name, download_root)
            if jit and (script := _load_script(path, device)) is not None:
                return script, _transform(int(script.input_resolution))
            model, pixels = _load_file(path, device), recorded_pixels(path)
    except CheckpointError as error:
        raise LoadError(str(error)) from error
    size = model.visual.input_resolution
    return OptimizedCLIP(model) if optimize else model, _transform(size) if pixels is None else pixels.transform(size)


def tokenize(texts: str | Iterable[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Return token ids, int32 (texts, context_length), padded with 0.

    `truncate` cuts a text that is too long and keeps EOT last; without it such a text raises TooLongError (a
    RuntimeError and a ValueError). What is no text raises TypeError.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] is of type {type(text).__name__}: tokenize takes a str or a list of them")
    if truncate and context_length == 1:  # what is cut to one token is EOT; a tokenizer has no room for it and SOT
        return torch.full((len(texts), 1), shared_tokenizer().eos_token_id, dtype=torch.int32)
    try:
        batch = shared_tokenizer()(
            texts, padding="max_length", max_length=context_length, truncation=truncate, return_tensors="pt"
        )
    except TextTooLongError as error:
        advice = f"over {error.limit}: pass truncate=True"
        raise TooLongError(error.problem, advice, error.index, error.tokens, error.limit) from error
    return batch["input_ids"].int()


def _transform(n_px: int) -> Compose:
    """Return the original's transform: resize and crop in the image's own mode, only then RGB."""
    return Compose(
        [
            Resize(n_px, BICUBIC),
            CenterCrop(n_px),
            _convert_image_to_rgb,
            ToTensor(),
            Normalize(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        ]
    )


def _convert_image_to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


# --- loading ----------------------------------------------------------------------------------------------------------


def _load_file(path: Path, device: torch.device) -> CLIP:
    original = read_original(path, report=logger.warning)
    try:
        # straight from the file, which may be mapped, into tensors of the model's own
        return build_variant(original.state_dict, original.variant, device, _computing_dtype(device))
    except CheckpointError as error:  # it knows tensors, not the file
        raise LoadError(f"{path}: {error}") from error


def _computing_dtype(device: torch.device) -> torch.dtype | None:
    """Return float32 for the CPU, None for the original's mix elsewhere."""
    return torch.float32 if device.type == "cpu" else None


def _load_repository(name: str, device: torch.device, jit: bool, cache_dir: str | os.PathLike | None) -> CLIP:
    """Load a folder, or a Hub id."""
    folder = Path(name).expanduser()
    if not folder.is_dir() and not re.fullmatch(r"\w[\w.-]*/[\w.-]+(?<!\.pt)", name):
        resolve_checkpoint(name)  # neither a name nor there: says so
    if jit:
        raise LoadError(f"{name} has no TorchScript module: load it without jit=True")
    if folder.is_dir():
        check_converted(folder)
    dtype = _computing_dtype(device) or torch.float16
    source = folder if folder.is_dir() else name
    try:
        hf_model = HFCLIPModel.from_pretrained(source, dtype=dtype, cache_dir=cache_dir)
    except OSError as error:
        known = f"{name} is not one of {', '.join(CHECKPOINTS)}, nor a file, and no folder or Hub id that loads"
        reason = str(error).splitlines()[0].rstrip(":.")
        if (status := _hub_status(error)) in (401, 403):
            reason = f"the Hub answered {status}, so it is private, gated or absent: log in with `hf auth login`"
        raise LoadError(f"{known} ({reason})") from error
    return from_hf_model(hf_model.to(device).eval())


def _hub_status(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error goes back to, if it goes back to one."""
    while error is not None:
        if (status := getattr(getattr(error, "response", None), "status_code", None)) is not None:
            return status
        error = error.__cause__ or error.__context__
    return None


# --- TorchScript ------------------------------------------------------------------------------------------------------


def _load_script(path: Path, device: torch.device) -> torch.jit.ScriptModule | None:
    """Return the archive's module for `device`, or None where `path` is no archive."""
    try:
        script = torch.jit.load(path, map_location=device).eval()
    except RuntimeError:
        warnings.warn(f"{path} is not a TorchScript archive: loading its state dict, without jit", stacklevel=3)
        return None
    for module in script.modules():
        for method in module._c._method_names():
            _set_constants(module._c._get_method(method).graph, device)
    return script.float() if device.type == "cpu" else script


def _set_constants(graph: torch.Graph, device: torch.device) -> None:
    """Replace the device and the dtype that tracing wrote into the graph."""
    for node in graph.findAllNodes("prim::Constant"):
        if node.output().type().kind() == "DeviceObjType" and node.s("value").startswith("cuda"):
            node.s_("value", str(device))
    if device.type == "cpu":
        for node in graph.findAllNodes("aten::to"):
            for constant in (value.node() for value in node.inputs()):
                is_integer = constant.kind() == "prim::Constant" and constant.output().type().kind() == "IntType"
                if is_integer and constant.i("value") == _HALF:
                    constant.i_("value", _FLOAT)


def __getattr__(name: str) -> SimpleTokenizer:
    if name == "_tokenizer":  # made when first asked for: it reads the vocabulary
        return globals().setdefault(name, SimpleTokenizer())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["BICUBIC", "LoadError", "TooLongError", "available_models", "build_model", "load", "tokenize"]
