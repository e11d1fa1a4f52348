"""Preprocessing beside the original, stock transformers and open_clip."""

from collections.abc import Callable
from typing import Any

import clip.clip
import numpy as np
import open_clip
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPImageProcessorPil

from hf_clip.model.image_processing_hf_clip import HFCLIPImageProcessor, HFCLIPImageProcessorTorchvision

from .common import ORIGINAL, Row, rows_of, take_turns

BATCH = 16
THREADS = (1, 2)


def photos(count: int, width: int, height: int) -> list[Image.Image]:
    """RGB images with a photo's mixture of large and small structures."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        image = np.zeros((height, width, 3), np.float32)
        for cells in (2, 8, 32, 128):
            noise = generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            image += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / cells
        images.append(Image.fromarray((image * 255 / image.max()).astype(np.uint8)))
    return images


def peers() -> dict[str, Callable[[list[Image.Image]], torch.Tensor]]:
    """Name -> a function from a list of images to (B, 3, 224, 224)."""

    def one_by_one(transform: Callable[[Image.Image], torch.Tensor]) -> Callable[[list[Image.Image]], torch.Tensor]:
        return lambda images: torch.stack([transform(image) for image in images])

    def batched(processor: Callable[..., Any]) -> Callable[[list[Image.Image]], torch.Tensor]:
        return lambda images: processor(images, return_tensors="pt").pixel_values

    return {
        ORIGINAL: one_by_one(clip.clip._transform(224)),
        "open_clip": one_by_one(open_clip.image_transform(224, is_train=False)),
        "transformers pil": batched(CLIPImageProcessorPil()),
        "transformers torchvision": batched(CLIPImageProcessor()),
        "hf_clip": batched(HFCLIPImageProcessor()),
        "hf_clip torchvision": batched(HFCLIPImageProcessorTorchvision()),
    }


def measure(rounds: int, width: int = 640, height: int = 480) -> list[Row]:
    """Every peer on a batch of RGB photos, on one thread and on two."""
    images, functions = photos(BATCH, width, height), peers()
    ways = {name: lambda function=function: function(images) for name, function in functions.items()}
    rows, before = [], torch.get_num_threads()
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            case = f"{width}x{height}, {threads} thread{'s' if threads > 1 else ''}"
            rows += rows_of("preprocessing", case, take_turns(ways, rounds, case, pause=0.05), BATCH)
    finally:
        torch.set_num_threads(before)
    return rows
