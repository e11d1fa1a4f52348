"""Bits that change with the batch and the threads, and the cost of `deterministic=True`, for random full-size towers.

python -m benchmarks.invariance --models ViT-B/32,RN50
"""

from typing import Annotated

import torch
import typer

from hf_clip.embedding.features import features

from .common import take_turns
from .nine import image_tower

BATCHES = (1, 2, 8)
IMAGES = 8


def equal_rows(model: torch.nn.Module, pixels: torch.Tensor, deterministic: bool) -> tuple[int, int]:
    """Count the embeddings that equal those of one image at a time on one thread, over BATCHES and threads."""
    threads, expected, equal, total = torch.get_num_threads(), None, 0, 0
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            for batch in BATCHES:
                rows = [
                    features(model, "image", {"pixel_values": part}, deterministic=deterministic)
                    for part in pixels.split(batch)
                ]
                found = torch.cat(rows)
                expected = found if expected is None else expected
                equal += sum(torch.equal(row, other) for row, other in zip(found, expected, strict=True))
                total += len(found)
    finally:
        torch.set_num_threads(threads)
    return equal, total


def main(
    models: Annotated[str, typer.Option(help="Architectures.")] = "ViT-B/32,RN50",
    rounds: Annotated[int, typer.Option(help="Turns that each way gets; medians are reported.")] = 5,
) -> None:
    """Count the embeddings of each tower that keep their bits, and time `deterministic`."""
    for name in models.split(","):
        model = image_tower(name)
        report(name, model, rounds)
        report(f"{name}, optimized", model.optimize_for_inference(), rounds)


def report(name: str, model: torch.nn.Module, rounds: int) -> None:
    """Print one line for one tower."""
    pixels = torch.randn(IMAGES, 3, model.config.image_size, model.config.image_size)
    kept = {flag: "{} of {}".format(*equal_rows(model, pixels, flag)) for flag in (False, True)}
    ways = {
        str(flag): lambda flag=flag: features(model, "image", {"pixel_values": pixels}, deterministic=flag)
        for flag in (False, True)
    }
    seconds = take_turns(ways, rounds, name)
    cost = seconds["True"] / seconds["False"]
    print(f"{name}: {kept[False]} keep their bits; with deterministic {kept[True]}, in {cost:.2f} times the time")


if __name__ == "__main__":
    typer.run(main)
