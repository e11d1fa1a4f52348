"""The original's models with random weights, as files like the published ones, and loaded by its own code."""

from pathlib import Path

from clip.model import CLIP

from benchmarks.originals import (
    ARCHITECTURES,
    TEXT,
    clip,
    convert_weights,
    fresh_original_model,
    inputs,
    original_model,
    save_archive,
)

FAMILIES = ("tiny ViT", "tiny ResNet")


def load_original(path: Path) -> CLIP:
    """The original's own loading, in fp32 on the CPU."""
    return clip.load(str(path), device="cpu")[0].eval()


__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "TEXT",
    "clip",
    "convert_weights",
    "fresh_original_model",
    "inputs",
    "load_original",
    "original_model",
    "save_archive",
]
