"""Preprocessing speed beside the original, stock transformers and open_clip: `python -m benchmarks.preprocess`."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip.clip
import numpy as np
import open_clip
import torch
from PIL import Image
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPImageProcessorPil

from hf_clip.image_processing_hf_clip import HFCLIPImageProcessor, HFCLIPImageProcessorTorchvision

BASELINE = "original"


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
        BASELINE: one_by_one(clip.clip._transform(224)),
        "open_clip": one_by_one(open_clip.image_transform(224, is_train=False)),
        "stock pil": batched(CLIPImageProcessorPil()),
        "stock torchvision": batched(CLIPImageProcessor()),
        "hf_clip pil (default)": batched(HFCLIPImageProcessor()),
        "hf_clip torchvision": batched(HFCLIPImageProcessorTorchvision()),
    }


def measure(
    width: int = 640, height: int = 480, batch: int = 16, rounds: int = 15, threads: tuple[int, ...] = (1, 2)
) -> list[dict[str, Any]]:
    """A row for each peer and number of threads. The peers take turns, so that all see the same machine."""
    images, functions = photos(batch, width, height), peers()
    seconds = {(count, name): [] for count in threads for name in functions}
    before = torch.get_num_threads()
    try:
        for turn in tqdm(range(rounds + 1), desc="rounds"):
            for count in threads:
                torch.set_num_threads(count)
                for name, function in functions.items():
                    time.sleep(0.05)  # PyTorch's threads of the peer before go on spinning for a while
                    start = time.perf_counter()
                    function(images)
                    if turn > 0:  # the first round warms up
                        seconds[count, name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return [
        {
            "threads": count,
            "peer": name,
            "ms_per_image": 1000 * median / batch,
            "images_per_second": batch / median,
            "times_original": medians[count, BASELINE] / median,
        }
        for (count, name), median in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows = measure(args.width, args.height, args.batch, args.rounds, tuple(args.threads))
    print(f"| threads | {args.width}x{args.height} | ms per image | images/s | x original |")
    print("| ---: | :--- | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['threads']} | {row['peer']} | {row['ms_per_image']:.2f} "
            f"| {row['images_per_second']:.0f} | {row['times_original']:.2f} |"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
