"""Train the two tiny CLIPs of the demo on drawn shapes: `python -m examples.train_shapes --help`.

The training step is plain transformers (`HFCLIPModel(..., return_loss=True)`), and the result is saved in the
original's file format. Some pairs of colour and shape never occur in training: the models have to put together what
they know of each.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from conversion.convert import make_processor
from hf_clip import (
    HFCLIPConfig,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPResNetConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
)
from hf_clip.openai.checkpoints import read_checkpoint, write_state_dict
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.key_mapping import to_hf, to_original

from .shapes import HELD_OUT, PAIRS, SEEN, SHAPES, caption, draw

IMAGE_SIZE = 64
# few dimensions: no room to learn each pair by heart
EMBED_DIM = 16
# every batch holds each of these once, so that no two captions mean the same
DRAWN = [*SEEN, *((None, shape) for shape in SHAPES)]
# the original takes one attention head per 64 channels
VISION = {
    "resnet": HFCLIPResNetConfig(
        image_size=IMAGE_SIZE, width=16, depths=[1, 1, 1, 1], num_attention_heads=8, projection_dim=EMBED_DIM
    ),
    "vit": HFCLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=16,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=EMBED_DIM,
    ),
}
TEXT = HFCLIPTextConfig(
    hidden_size=64, intermediate_size=256, num_hidden_layers=1, num_attention_heads=1, projection_dim=EMBED_DIM
)
LEARNING_RATE = {"resnet": 2e-3, "vit": 1e-3}
STEPS = {"resnet": 1000, "vit": 2000}
CHECKPOINTS = {family: Path(__file__).parent / "checkpoints" / f"shapes-{family}.pt" for family in VISION}
PROMPT = "This is a photo of {}."  # the pipeline's default


def configuration(family: str) -> HFCLIPConfig:
    return HFCLIPConfig(text_config=TEXT.to_dict(), vision_config=VISION[family].to_dict())


def draw_pixels(pairs: list[tuple[str | None, str]], each: int, seed: int, processor: HFCLIPProcessor) -> Tensor:
    """Normalised pixels (each, pairs, 3, H, W)."""
    rng = np.random.default_rng(seed)
    rounds = [
        processor(images=[draw(*pair, rng) for pair in pairs], return_tensors="pt").pixel_values
        for _ in tqdm(range(each), desc="drawing", unit="round")
    ]
    return torch.stack(rounds)


def train(
    family: str, steps: int, seed: int, pool: Tensor, processor: HFCLIPProcessor, text_from: Path
) -> tuple[HFCLIPModel, set[int]]:
    """The trained model, and the token ids that it has seen. The ViT takes over the text tower of `text_from`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = HFCLIPModel(configuration(family)).train()
    if family == "vit":
        lock_text_tower(model, text_from)
        # shapes are told by where their edges are; as initialised, positions are a whisper beside the patches
        with torch.no_grad():
            model.vision_model.embeddings.position_embedding.weight *= 8
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decayed = {name for name, parameter in trained.items() if parameter.ndim > 1 and "embedding" not in name}
    groups = [
        {"params": [trained[name] for name in trained if name in decayed], "weight_decay": 0.1},
        {"params": [trained[name] for name in trained if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE[family], total_steps=steps, pct_start=0.1)
    tokens = set()
    bar = tqdm(range(steps), desc=f"training {family}", unit="step")
    for _ in bar:
        pixel_values = pool[torch.randint(len(pool), (len(DRAWN),)), torch.arange(len(DRAWN))]
        captions = [caption(*pair, rng) for pair in DRAWN]
        input_ids = processor(text=captions, return_tensors="pt").input_ids
        tokens.update(input_ids.flatten().tolist())
        loss = model(input_ids, pixel_values, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():  # paper section 2.5
            model.logit_scale.clamp_(max=math.log(100))
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval(), tokens


def lock_text_tower(model: HFCLIPModel, checkpoint: Path) -> None:
    """Take another model's text tower, and leave it as it is (Zhai et al. 2022, with the towers' roles exchanged).

    A tiny ViT with a text tower of its own learns colours only: it is slow to see shapes, and meanwhile the text tower
    learns that their names tell nothing.
    """
    state_dict = read_checkpoint(checkpoint)
    borrowed = to_hf(state_dict, infer_config(state_dict))
    for name, parameter in model.named_parameters():
        if name.startswith("text_") or name == "logit_scale":
            parameter.data.copy_(borrowed[name])
            parameter.requires_grad_(False)


@torch.no_grad()
def accuracy(model: HFCLIPModel, pixels: Tensor, processor: HFCLIPProcessor) -> dict[str, float]:
    """Zero-shot accuracy of images (N, pairs, 3, H, W) among all pairs: of the known ones and of the held-out ones."""
    prompts = [PROMPT.format(" ".join(pair)) for pair in PAIRS]
    input_ids = processor(text=prompts, return_tensors="pt").input_ids
    guesses = torch.stack([model(input_ids, batch).logits_per_image.argmax(-1) for batch in pixels])
    right = (guesses == torch.arange(len(PAIRS))).float().mean(0)
    held_out = torch.tensor([pair in HELD_OUT for pair in PAIRS])
    return {"known": right[~held_out].mean().item(), "held out": right[held_out].mean().item()}


def export(model: HFCLIPModel, tokens: set[int], path: Path) -> None:
    """Save for the original's `clip.load`, in fp16; words that never occurred get a zero embedding."""
    state_dict = to_original(model.state_dict(), model.config)
    unseen = torch.ones(TEXT.vocab_size, dtype=torch.bool)
    unseen[list(tokens)] = False
    state_dict["token_embedding.weight"] = state_dict["token_embedding.weight"].masked_fill(unseen[:, None], 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_state_dict({key: t.half() if t.is_floating_point() else t for key, t in state_dict.items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=[*VISION, "both"], default="both")
    parser.add_argument("--steps", type=int, help=f"default: {STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for the checkpoints; default: where the demo reads them")
    options = parser.parse_args()

    processor = make_processor(configuration("vit"))  # both families read the same
    pool = draw_pixels(DRAWN, 500, options.seed, processor)
    unseen_images = draw_pixels(PAIRS, 20, options.seed + 1, processor)
    folder = options.output or CHECKPOINTS["resnet"].parent
    for family in VISION if options.model == "both" else [options.model]:
        start = time.perf_counter()
        text_from = folder / CHECKPOINTS["resnet"].name if options.model == "both" else CHECKPOINTS["resnet"]
        model, tokens = train(family, options.steps or STEPS[family], options.seed, pool, processor, text_from)
        minutes = (time.perf_counter() - start) / 60
        scores = accuracy(model, unseen_images, processor)
        path = folder / CHECKPOINTS[family].name
        export(model, tokens, path)
        print(
            f"{path}: {minutes:.1f} min, zero-shot accuracy among {len(PAIRS)} labels: "
            + ", ".join(f"{kind} {score:.1%}" for kind, score in scores.items())
        )


if __name__ == "__main__":
    main()
