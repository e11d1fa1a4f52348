"""The drop-in's modules beside the original's, with the same weights: embeddings and a training step.

Both compute in float32 and in evaluation mode, all 77 columns of text. `load` has the time and memory of loading.
"""

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import hf_clip.openai

from .common import ORIGINAL, Row, rows_of, take_turns
from .originals import inputs, original_model, save_archive

DROP_IN, OPTIMIZED = "hf_clip.openai", "hf_clip.openai, optimize=True"
MODELS = ("ViT-B/32", "RN50")
BATCH, TEXTS, PAIRS = 8, 32, 8
LIMIT = 120  # seconds a case


def measure(rounds: int, models: tuple[str, ...] = MODELS) -> list[Row]:
    """Rows for images, short texts and a step of SGD; noted is the memory that the step saves for its backward pass."""
    rows = []
    for name in models:
        pair = build(name)
        optimized = hf_clip.openai.OptimizedCLIP(pair[DROP_IN])
        pixels, ids = inputs(pair[ORIGINAL], images=BATCH, texts=TEXTS)
        encoders = {**pair, OPTIMIZED: optimized}
        with torch.no_grad():
            images = {peer: partial(model.encode_image, pixels) for peer, model in encoders.items()}
            texts = {peer: partial(model.encode_text, ids) for peer, model in encoders.items()}
            rows += turns(f"{name}, {BATCH} images", images, rounds, BATCH)
            rows += turns(f"{name}, {TEXTS} short texts", texts, rounds, TEXTS)
        steps = {peer: step(model, pixels[:PAIRS], ids[:PAIRS]) for peer, model in pair.items()}
        notes = {peer: f"saved for backward {saved_mib(way):,.0f} MiB" for peer, way in steps.items()}
        rows += turns(f"{name}, step of {PAIRS} pairs", steps, rounds, PAIRS, notes)
        del pair, optimized, encoders, images, texts, steps
        gc.collect()
    return rows


def build(name: str) -> dict[str, nn.Module]:
    """The original's model and ours, of one state dict."""
    original = original_model(name)
    with tempfile.TemporaryDirectory() as folder:
        path = save_archive(original, Path(folder) / "model.pt", half_graph=False)
        ours, _ = hf_clip.openai.load(path, "cpu")
    for attribute in ("input_resolution", "context_length", "vocab_size"):  # which save_archive left on the model
        delattr(original, attribute)
    original.context_length = ours.context_length
    return {ORIGINAL: original.float().eval(), DROP_IN: ours}


def turns(
    case: str, ways: dict[str, Callable[[], object]], rounds: int, items: int, notes: dict[str, str] | None = None
) -> list[Row]:
    return rows_of("drop-in", case, take_turns(ways, rounds, case, limit=LIMIT), items, notes=notes or {})


def step(model: nn.Module, pixels: Tensor, ids: Tensor) -> Callable[[], Tensor]:
    """A step of SGD on the symmetric contrastive loss; a rate of 0 keeps the weights."""
    optimizer, target = torch.optim.SGD(model.parameters(), lr=0.0), torch.arange(len(pixels))

    def run() -> Tensor:
        model.train()
        optimizer.zero_grad()
        loss = sum(nn.functional.cross_entropy(logits, target) for logits in model(pixels, ids)) / 2
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def saved_mib(way: Callable[[], object]) -> float:
    """MiB of tensors that a call saves for its backward pass, each storage once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        way()
    return sum(sizes.values()) / 2**20


__all__ = ["measure"]
