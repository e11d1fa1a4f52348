"""The original's models with random weights, as files like the published ones, and loaded by its own code."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from clip.model import CLIP
from torch import Tensor, nn

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
    with without_random_start():
        return clip.load(str(path), device="cpu")[0].eval()


@contextmanager
def without_random_start() -> Generator:
    """Let modules leave their parameters as the memory was: a strict `load_state_dict` writes over all of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *arguments, **options: tensor)
        yield


def both_features_and_logits(model: nn.Module, images: Tensor, texts: Tensor) -> list[Tensor]:
    """What `encode_image` and `encode_text` gave within one call of a CLIP, and its two logits."""
    found: list[Tensor] = []

    def keeping(encode):
        def kept(inputs: Tensor) -> Tensor:
            found.append(encode(inputs))
            return found[-1]

        return kept

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for name in ("encode_image", "encode_text"):
            patch.setitem(vars(model), name, keeping(getattr(model, name)))
        logits = model(images, texts)
    return [*found, *logits]


__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "TEXT",
    "both_features_and_logits",
    "clip",
    "convert_weights",
    "fresh_original_model",
    "inputs",
    "load_original",
    "original_model",
    "save_archive",
    "without_random_start",
]
