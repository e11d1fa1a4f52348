"""The nine checkpoints side by side: their size and accuracy as published, and their image tower's speed here.

`python -m benchmarks.nine` prints the table of README. Weights are random, and only the image tower is built: speed
does not depend on the weights.
"""

import gc
import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from hf_clip import HFCLIPConfig, HFCLIPVisionModelWithProjection
from hf_clip.model.configuration_hf_clip import HFCLIPResNetConfig, HFCLIPVisionConfig

from .common import timed
from .machine import describe
from .originals import ARCHITECTURES

BATCH = 16
CHECKPOINTS = Path(__file__).parents[1] / "model_cards" / "checkpoints.json"


def image_tower(name: str) -> HFCLIPVisionModelWithProjection:
    """Build one of the nine's image tower, as it is initialized."""
    embed_dim, resolution, layers, width, patch, *_ = ARCHITECTURES[name]
    sizes = {"image_size": resolution, "projection_dim": embed_dim}
    if patch is None:
        vision = HFCLIPResNetConfig(width=width, depths=list(layers), num_attention_heads=width // 2, **sizes)
    else:
        vision = HFCLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            patch_size=patch,
            **sizes,
        )
    config = HFCLIPConfig(vision_config=vision.to_dict(), projection_dim=embed_dim)
    return HFCLIPVisionModelWithProjection(config.vision_config).eval()


@torch.no_grad()
def images_per_second(model: HFCLIPVisionModelWithProjection, rounds: int) -> float:
    """Return the rate of the fastest of `rounds` batches: other programs only ever make a batch slower."""
    size = model.config.image_size
    pixels = torch.randn(BATCH, 3, size, size, device=model.device)
    model(pixels[:1])
    return BATCH / min(timed(model, pixels) for _ in range(rounds))


def main(
    rounds: Annotated[int, typer.Option(help="Batches to time of each model; the fastest counts.")] = 3,
    device: Annotated[str, typer.Option(help="Where to compute.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print the table of README, with this machine's images per second.

    Example: python -m benchmarks.nine --rounds 5
    """
    published = json.loads(CHECKPOINTS.read_text())["checkpoints"]
    lines = {}
    for name, facts in tqdm(sorted(published.items(), key=lambda item: item[1]["image"]["gflops"])):
        model = image_tower(name).to(device)
        exact = images_per_second(model, rounds)
        optimized = images_per_second(model.optimize_for_inference(), rounds)
        accuracy = [facts["zero_shot"]["ImageNet 1k"], facts["average"], facts["zero_shot"]["Flickr"]]
        cells = [
            name,
            f"{facts['resolution']}",
            f"{facts['parameters'] / 1e6:.0f} M",
            f"{facts['image']['gflops']:.0f}",
            *(f"{100 * value:.1f}" for value in accuracy),
            f"{exact:.2g}",
            f"{optimized:.2g}",
        ]
        lines[name] = f"| {' | '.join(cells)} |"
        del model
        gc.collect()
    head = ("", "pixels", "size", "GFLOP", "ImageNet", "38 sets", "Flickr30k", "images/s", "optimized")
    print(f"{describe(torch.device(device))}, batches of {BATCH}")
    print(f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines.values(), sep="\n")


if __name__ == "__main__":
    typer.run(main)
