"""Images and texts to embeddings, beside the original, open_clip and stock transformers.

All compute in float32 with the same weights. "compiled" is torch.compile over the optimized model; bfloat16 rows are
measured where the machine has the hardware. A row's share is the part of the machine's own peak that it reaches, in
matrix products for ViTs and texts, in a 3x3 convolution for ResNets.
"""

import copy
import gc
import random
from collections.abc import Callable

import torch

from .common import Row, rows_of, take_turns
from .machine import has_fast_bfloat16, peaks
from .peers import OPTIMIZED, Peers, build
from .tokenization import captions, template_prompts

IMAGE_MODELS = ("ViT-B/32", "ViT-L/14", "RN50", "RN50x4")
TEXT_MODEL = "ViT-B/32"
BATCHES = (1, 16)
TEXTS = 64


def encode(models: list[str], batches: list[int], rounds: int, device: torch.device, compiled: bool) -> list[Row]:
    """Rows for images of `models` in `batches`, and for texts of TEXT_MODEL if it is one of them."""
    rows = []
    for name in models:
        peers = build(name, device)
        for batch in batches:
            rows += image_rows(name, peers, batch, rounds, compiled)
        if name == TEXT_MODEL:
            rows += text_rows(name, peers, rounds)
        del peers
        gc.collect()
    return rows


@torch.no_grad()
def image_rows(name: str, peers: Peers, batch: int, rounds: int, compiled: bool) -> list[Row]:
    device = peers.exact.device
    pixels = torch.randn(batch, 3, peers.resolution, peers.resolution, device=device)
    encoders = peers.images()
    if compiled:
        encoders[f"{OPTIMIZED}, compiled"] = torch.compile(peers.optimized.encode_image, dynamic=False)
    if has_fast_bfloat16(device):
        half = copy.deepcopy(peers.exact).to(torch.bfloat16).optimize_for_inference()
        encoders[f"{OPTIMIZED}, bf16"] = half.encode_image
    limits = peaks(device)
    ways = {peer: lambda encode=encode: encode(pixels) for peer, encode in encoders.items()}
    ways |= {limit: function for limit, (function, _) in limits.items()}
    seconds = take_turns(ways, rounds, f"{name}, batch {batch}")
    peak = {limit: flops / seconds.pop(limit) for limit, (_, flops) in limits.items()}
    limit = "convolution peak" if "RN" in name else "matrix peak"
    flops = peers.image_flops() * batch
    return rows_of("images", f"{name}, batch {batch}", seconds, batch, flops=flops, peak=peak[limit])


def text_cases() -> dict[str, list[str]]:
    """64 texts each: zero-shot prompts, texts that fill all columns, and captions among prompts."""
    pool = captions(12 * TEXTS)
    full = [" ".join(pool[12 * i : 12 * (i + 1)]) for i in range(TEXTS)]
    mixed = template_prompts(TEXTS * 3 // 4) + [" ".join(pool[3 * i : 3 * i + 3]) for i in range(TEXTS // 4)]
    random.Random(0).shuffle(mixed)
    return {"short prompts": template_prompts(TEXTS), "77 tokens": full, "mixed lengths": mixed}


@torch.no_grad()
def text_rows(name: str, peers: Peers, rounds: int) -> list[Row]:
    rows = []
    for case, texts in text_cases().items():
        ways: dict[str, Callable] = {
            peer: lambda encode=encode, texts=texts: encode(texts) for peer, encode in peers.texts().items()
        }
        seconds = take_turns(ways, rounds, f"{name}, {case}")
        rows += rows_of("texts", f"{name}, {case}", seconds, len(texts))
    return rows
