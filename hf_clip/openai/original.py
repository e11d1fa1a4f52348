"""Read an original checkpoint, and state the assumptions where a file does not record a setting."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..utils.files import file_sha256
from .checkpoints import read_checkpoint
from .download import resolve_checkpoint
from .pixels import OPENAI_PIXELS, Pixels, recorded_pixels
from .published import CHECKPOINTS, published
from .torchscript import is_archive
from .variants import Variant, choose_variant, recorded_variant
from .weights import recorded_digests, values_digest


@dataclass(frozen=True)
class Original:
    """A checkpoint's tensors under the original's keys, with the settings assumed for its architecture."""

    path: Path
    state_dict: dict[str, Tensor]
    variant: Variant
    pixels: Pixels = OPENAI_PIXELS


def read_original(
    source: str | os.PathLike,
    cache_dir: str | os.PathLike | None = None,
    *,
    activation: str | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    like: str | None = None,
    prefix: str | None = None,
    report: Callable[[str], None] = print,
) -> Original:
    """Read a checkpoint, and report the assumptions for files other than the nine published.

    A state dict records neither its activation nor the number of heads. They come from these arguments, else from an
    `open_clip_config.json` beside the file, else they are OpenAI's.

    Args:
        source: One of the nine names, which is downloaded, or a file.
        cache_dir: Where downloads are kept.
        activation: "quick_gelu", which OpenAI's models use, or "gelu".
        vision_heads: Attention heads of the vision tower.
        text_heads: Attention heads of the text tower.
        like: The name of an open_clip architecture that has these settings, such as "ViT-H-14".
        prefix: The prefix of the keys to read where a file holds several CLIPs.
        report: Called with one sentence that names the assumptions.

    Raises:
        CheckpointError: The source is no CLIP, or one that hf_clip cannot express.
        DownloadError: The download failed.
    """
    path = resolve_checkpoint(source, cache_dir)
    known = source in CHECKPOINTS  # whose digest was compared when it was fetched
    with ThreadPoolExecutor(1) as pool:
        # only a TorchScript archive can be one of the nine; its digest takes as long as reading it, so at the same time
        digest = pool.submit(file_sha256, path) if not known and is_archive(path) else None
        state_dict = {name: _plain_strides(tensor) for name, tensor in read_checkpoint(path, prefix, known).items()}
    known = known or (digest is not None and published(digest.result()) is not None)
    known = known or _is_copy(source, state_dict, report)
    variant = choose_variant(recorded_variant(path), like, activation, vision_heads, text_heads)
    pixels = recorded_pixels(path)
    if not known:
        report(assumption(path, variant, pixels))
    return Original(path, state_dict, variant, pixels or OPENAI_PIXELS)


def _is_copy(source: str | os.PathLike, state_dict: dict[str, Tensor], report: Callable[[str], None]) -> bool:
    """Return True if `source` is the copy on the Hub of one of the nine, and its values are the recorded ones."""
    name = next((row.name for row in CHECKPOINTS.values() if row.mirror == source), None)
    if name is None or (recorded := recorded_digests().get(name)) is None:
        return False
    if same := values_digest(state_dict) == recorded:
        report(f"{source} holds the weights of OpenAI's {name}, bit for bit")
    else:
        report(f"{source} does not hold the weights of OpenAI's {name}: their values differ")
    return same


def _plain_strides(tensor: Tensor) -> Tensor:
    # strides such as channels_last select other kernels, with other rounding; is_contiguous() is true of some of them
    plain = torch.empty(tensor.shape, device="meta").stride()
    return tensor if tensor.stride() == plain else tensor.clone(memory_format=torch.contiguous_format)


def assumption(path: Path, variant: Variant, pixels: Pixels | None) -> str:
    """Name the settings that are assumed because the file does not record them."""
    source = "recorded" if pixels else "OpenAI's"
    return (
        f"{path} is none of the nine published files: assuming {variant}, a causal text tower, images read at the "
        f"class token or the attention pooling, and {source} pixels "
        f"({pixels or OPENAI_PIXELS})"
    )


__all__ = ["Original", "assumption", "read_original"]
