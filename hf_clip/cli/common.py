"""Helpers of the verbs that run a model: loading it, and the account of unreadable images."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..openai.errors import CheckpointError, DownloadError
from ..utils.packages import explaining
from ..utils.text import first_line, listing, printable, say
from .blocks import Loading
from .errors import CommandError
from .options import Precision
from .sources import MODEL_KINDS, check_source, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..exported.model import ExportedCLIP
    from ..exported.processor import ExportedProcessor

    Clip = tuple[PreTrainedModel | ExportedCLIP, Any]

MAX_NAMED = 10
STOPPED = 130  # 128 + SIGINT, as in shells


def load_embedder(model_id: str, loading: Loading) -> "Clip":
    """Load a model and its processor to embed images and texts; an exported model without torch, on NumPy arrays."""
    if kind_of(model_id) == "exported":
        return _load_exported(model_id, loading)
    return load_model(model_id, loading)


def load_model(model_id: str, loading: Loading) -> tuple["PreTrainedModel", Any]:
    """Load a model of PyTorch, in evaluation mode on its device, and its processor."""
    check_source(model_id, "--model", *MODEL_KINDS)
    with explaining(f"--model {model_id}"):
        from ..loading import load_clip

    model, processor = _load(load_clip, model_id, loading, optimize=loading.optimize)
    if not hasattr(model, "get_image_features"):
        raise CommandError(f"{model_id} is a {type(model).__name__}, not a CLIP with both towers")
    return model, processor


def load_text_embedder(model_id: str, loading: Loading) -> "Clip":
    """Load a model's text tower and its tokenizer to embed texts; of an exported model, both towers."""
    check_source(model_id, "--model", *MODEL_KINDS)
    if kind_of(model_id) == "exported":
        return _load_exported(model_id, loading)
    with explaining(f"--model {model_id}"):
        from ..loading import load_text_tower

    return _load(load_text_tower, model_id, loading)


def _load(loader: "Callable[..., Clip]", model_id: str, loading: Loading, **options: bool) -> "Clip":
    import torch
    from transformers.utils import logging

    dtype, device = settled(loading.dtype, loading.device)
    logging.disable_progress_bar()
    options["trust_remote_code"] = loading.trust_remote_code
    try:
        return loader(model_id, device=device, dtype=getattr(torch, dtype.value), **options)
    except (CheckpointError, DownloadError, FileNotFoundError):
        raise
    except Exception as error:  # a broken file makes its reader raise anything
        raise CommandError(f"cannot load {model_id}: {first_line(error)}") from error


def settled(dtype: Precision, device: str | None) -> tuple[Precision, str]:
    """Choose the device, and the dtype that `fastest` stands for, which standard error names."""
    import torch

    from ..utils.hardware import default_device, fastest_dtype

    device = device or str(default_device())
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"cannot compute on {device}: {first_line(error)}") from error
    if dtype is Precision.fastest:
        chosen, reason = fastest_dtype(device)
        dtype = Precision(str(chosen).removeprefix("torch."))
        say(f"computing in {dtype.value}: {reason}", err=True)
    return dtype, device


def _load_exported(directory: str, loading: Loading) -> tuple["ExportedCLIP", "ExportedProcessor"]:
    from ..exported.model import load_exported, precision_for

    directory = os.path.expanduser(directory)
    try:
        precision = precision_for(directory, loading.dtype.value, loading.optimize)
        return load_exported(directory, precision=precision, device=loading.device)
    except ImportError:
        raise
    except Exception as error:  # a broken file makes its reader raise anything
        raise CommandError(f"cannot load {directory}: {first_line(error)}") from error


class Skipped:
    """Collect the images that cannot be read, and report them on standard error."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def add(self, path: str, error: Exception) -> None:
        """Report one unreadable image."""
        self.paths.append(path)
        tell_skipped(first_line(error))

    def summarize(self, read: int) -> None:
        """Name the unreadable images; raise CommandError if none of all images was readable."""
        if not self.paths:
            if not read:
                raise CommandError("there are no images")
            return
        summary = (
            f"{len(self.paths):,} of {len(self.paths) + read:,} images could not be read: "
            f"{listing(self.paths, MAX_NAMED)}"
        )
        if not read:
            raise CommandError(summary)
        say(summary, err=True)


def tell_skipped(reason: str) -> None:
    """Write why an image was skipped to standard error, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(printable(f"skipped: {reason}"), file=sys.stderr)
