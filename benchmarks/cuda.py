"""The original's fp16 mix on a GPU: whether ours has its bits, and images per second up to saturation.

python -m benchmarks.cuda
"""

from typing import Annotated

import clip
import torch
import typer
from clip.model import convert_weights

from hf_clip import HFCLIPModel
from hf_clip.openai.convert import DType, Layout, to_repository

from .common import ORIGINAL, take_turns
from .machine import describe
from .originals import original_model
from .peers import EXACT, OPTIMIZED

TEXTS = ["a photo of a cat", "two dogs on a beach", "a diagram"]
COMPARED = 4
SATURATED = 1.05  # a doubled batch that gains less


def build(name: str, device: torch.device) -> dict[str, torch.nn.Module]:
    """Build the architecture `name` with random weights in the mix: the original, and ours exact and optimized."""
    original = original_model(name)
    convert_weights(original)
    repository = to_repository(original.state_dict(), Layout.hf_clip, DType.original)
    models: dict[str, torch.nn.Module] = {ORIGINAL: original.to(device).eval()}
    for peer in (EXACT, OPTIMIZED):
        model = HFCLIPModel._from_config(repository.config, dtype=torch.float16)
        model.load_state_dict(repository.tensors)
        models[peer] = model.to(device).eval()
    models[OPTIMIZED].optimize_for_inference()
    return models


@torch.no_grad()
def compare(models: dict[str, torch.nn.Module], device: torch.device) -> list[str]:
    """Compare features of images and texts with the original's, a line for each."""
    size = models[EXACT].config.vision_config.image_size
    inputs = {
        "encode_image": torch.randn(COMPARED, 3, size, size, device=device).half(),
        "encode_text": clip.tokenize(TEXTS).to(device),
    }
    lines = []
    for method, value in inputs.items():
        expected = getattr(models[ORIGINAL], method)(value)
        for peer in (EXACT, OPTIMIZED):
            found = getattr(models[peer], method)(value)
            cosine = torch.cosine_similarity(found.float(), expected.float()).min()
            same = "the original's bits" if torch.equal(found, expected) else f"least cosine {cosine:.6f}"
            lines.append(f"{method}, {peer}: {same}")
    return lines


@torch.no_grad()
def saturate(models: dict[str, torch.nn.Module], device: torch.device, largest: int, rounds: int) -> list[str]:
    """Time doubled batches until no peer gains any more, a line for each batch."""
    size, batch, rates, lines = models[EXACT].config.vision_config.image_size, 1, {}, []
    while batch <= largest:
        pixels = torch.randn(batch, 3, size, size, device=device).half()
        ways = {peer: lambda model=model, x=pixels: model.encode_image(x) for peer, model in models.items()}
        found = {peer: batch / seconds for peer, seconds in take_turns(ways, rounds, f"batch {batch}").items()}
        told = ", ".join(f"{peer} {rate / found[ORIGINAL]:.2f}" for peer, rate in found.items() if peer != ORIGINAL)
        lines.append(f"batch {batch}: original {found[ORIGINAL]:,.0f} images/s; times its rate: {told}")
        if rates and all(found[peer] < SATURATED * rates[peer] for peer in found):
            break
        rates, batch = found, 2 * batch
    return lines


def main(
    models: Annotated[str, typer.Option(help="Architectures.")] = "ViT-B/32,RN50",
    device: Annotated[str, typer.Option(help="Where to compute.")] = "cuda",
    largest: Annotated[int, typer.Option(help="The largest batch.")] = 2048,
    rounds: Annotated[int, typer.Option(help="Turns that each peer gets; medians are reported.")] = 5,
) -> None:
    """Compare the fp16 mix with the original's, and time it in growing batches."""
    place = torch.device(device)
    print(describe(place))
    for name in models.split(","):
        built = build(name, place)
        print(name, *compare(built, place), *saturate(built, place, largest, rounds), sep="\n  ")


if __name__ == "__main__":
    typer.run(main)
