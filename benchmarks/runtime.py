"""Images and short prompts to embeddings on ONNX Runtime and OpenVINO, beside PyTorch with the same weights.

All compute in float32 on the CPU with as many threads, and take turns. A row's share is the part of the machine's own
peak that it reaches, in matrix products for ViTs, in a 3x3 convolution for ResNets.
"""

import contextlib
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from hf_clip import HFCLIPExportedModel, HFCLIPModel, HFCLIPProcessor, export_clip
from hf_clip.embedding.texts import embed_texts

from .common import Row, rows_of, take_turns
from .encode import BATCHES, TEXTS
from .export import RUNTIMES, write_random
from .machine import peaks
from .peers import EXACT, OPTIMIZED, image_flops
from .tokenization import template_prompts

MODELS = ("ViT-B/32", "RN50")
NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
Clip = HFCLIPModel | HFCLIPExportedModel


def measure(rounds: int, names: tuple[str, ...] = MODELS) -> list[Row]:
    """Rows for images in BATCHES and for short prompts."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            clips, processor = build(name, Path(directory))
            for batch in BATCHES:
                rows += image_rows(name, clips, batch, rounds)
            rows += text_rows(name, clips, processor, rounds)
            del clips
            gc.collect()
    return rows


def build(name: str, directory: Path) -> tuple[dict[str, Clip], HFCLIPProcessor]:
    """The architecture with random weights, exact, optimized and on both runtimes."""
    folder = write_random(name, directory / "model")
    clips: dict[str, Clip] = {EXACT: HFCLIPModel.from_pretrained(folder).eval()}
    clips[OPTIMIZED] = HFCLIPModel.from_pretrained(folder).eval().optimize_for_inference()
    for runtime in RUNTIMES:
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            export_clip(folder, directory / runtime, runtime=runtime, report=lambda _: None)
            clips[NAMES[runtime]] = HFCLIPExportedModel(directory / runtime)
    return clips, HFCLIPProcessor.from_pretrained(folder)


@torch.no_grad()
def image_rows(name: str, clips: dict[str, Clip], batch: int, rounds: int) -> list[Row]:
    size = clips[EXACT].config.vision_config.image_size
    pixels = torch.randn(batch, 3, size, size)
    limits = peaks(torch.device("cpu"))
    ways: dict[str, Callable] = {peer: lambda clip=clip: clip.encode_image(pixels) for peer, clip in clips.items()}
    ways |= {limit: function for limit, (function, _) in limits.items()}
    # ONNX Runtime's and PyTorch's threads go on spinning after a call
    seconds = take_turns(ways, rounds, f"{name}, batch {batch}", pause=0.2)
    peak = {limit: flops / seconds.pop(limit) for limit, (_, flops) in limits.items()}
    limit = "convolution peak" if "RN" in name else "matrix peak"
    flops = image_flops(clips[EXACT].encode_image, size) * batch
    return rows_of(
        "runtime images", f"{name}, batch {batch}", seconds, batch, baseline=OPTIMIZED, flops=flops, peak=peak[limit]
    )


@torch.no_grad()
def text_rows(name: str, clips: dict[str, Clip], processor: HFCLIPProcessor, rounds: int) -> list[Row]:
    texts = template_prompts(TEXTS)
    ways: dict[str, Callable] = {
        peer: lambda clip=clip: embed_texts(clip, processor, texts, normalize=False) for peer, clip in clips.items()
    }
    seconds = take_turns(ways, rounds, f"{name}, short prompts", pause=0.2)
    return rows_of("runtime texts", f"{name}, short prompts", seconds, len(texts), baseline=OPTIMIZED)
