"""Train the two tiny CLIPs of the demo on drawn shapes: `python -m examples.train_shapes --help`.

`CLIPTrainer` trains them on a stream of drawn pairs, and the result is saved in the original's file format. Some pairs
of color and shape never occur in training: the models have to put together what they know of each.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import IterableDataset
from tqdm import tqdm

from hf_clip import (
    CLIPTrainer,
    CLIPTrainingArguments,
    HFCLIPConfig,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPResNetConfig,
    HFCLIPTextConfig,
    HFCLIPVisionConfig,
)
from hf_clip.openai.checkpoints import read_checkpoint, write_state_dict
from hf_clip.openai.convert import make_processor
from hf_clip.openai.infer_config import infer_config
from hf_clip.openai.key_mapping import to_hf, to_original

from .shapes import HELD_OUT, ORDERS, PAIRS, SEEN, SHAPES, TEMPLATES, caption, draw

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


def draw_images(pairs: list[tuple[str | None, str]], each: int, seed: int) -> list[list[Image]]:
    """Draw `each` rounds of one image for each pair."""
    rng = np.random.default_rng(seed)
    return [[draw(*pair, rng) for pair in pairs] for _ in tqdm(range(each), desc="drawing", unit="round")]


class Stream(IterableDataset):
    """Draw captions for the images of a pool, each pair once in a batch: no two captions of a batch mean the same."""

    def __init__(self, pool: list[list[Image]], steps: int, seed: int):
        self.pool, self.steps, self.seed = pool, steps, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            for place, pair in enumerate(DRAWN):
                yield {"image": self.pool[rng.integers(len(self.pool))][place], "text": caption(*pair, rng)}


def train(
    family: str, steps: int, seed: int, pool: list[list[Image]], processor: HFCLIPProcessor, text_from: Path
) -> HFCLIPModel:
    """Train a model from nothing; the ViT takes over the text tower of `text_from`, and leaves it as it is."""
    torch.manual_seed(seed)
    model = HFCLIPModel(configuration(family))
    if family == "vit":
        borrow_text_tower(model, text_from)
        # shapes are told by where their edges are; as initialized, positions are a whisper beside the patches
        with torch.no_grad():
            model.vision_model.embeddings.position_embedding.weight *= 8
    with TemporaryDirectory() as folder:
        arguments = CLIPTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=len(DRAWN),
            learning_rate=LEARNING_RATE[family],
            train="image" if family == "vit" else "all",
            train_logit_scale=family != "vit",
            freeze_batch_norm=False,
            save_strategy="no",
            report_to="none",
            seed=seed,
        )
        CLIPTrainer(model, processor, arguments, train_dataset=Stream(pool, steps, seed)).train()
    return model.eval()


def known_tokens(processor: HFCLIPProcessor) -> set[int]:
    """List the token ids of all captions that can be drawn."""
    words = [order.format(color=color, shape=shape) for color, shape in SEEN for order in ORDERS]
    captions = [template.format(text) for text in [*words, *SHAPES] for template in TEMPLATES]
    return set(processor(text=captions, return_tensors="pt").input_ids.flatten().tolist())


def borrow_text_tower(model: HFCLIPModel, checkpoint: Path) -> None:
    """Take another model's text tower and scale (Zhai et al. 2022, with the towers' roles exchanged).

    A tiny ViT with a text tower of its own learns colors only: it is slow to see shapes, and meanwhile the text tower
    learns that their names tell nothing.
    """
    state_dict = read_checkpoint(checkpoint)
    borrowed = to_hf(state_dict, infer_config(state_dict))
    for name, parameter in model.named_parameters():
        if name.startswith("text_") or name == "logit_scale":
            parameter.data.copy_(borrowed[name])


@torch.no_grad()
def accuracy(model: HFCLIPModel, images: list[list[Image]], processor: HFCLIPProcessor) -> dict[str, float]:
    """Measure the zero-shot accuracy of rounds of images among all pairs: of the known and of the held-out ones."""
    prompts = [PROMPT.format(" ".join(pair)) for pair in PAIRS]
    batches = [processor(images=drawn, text=prompts, return_tensors="pt") for drawn in images]
    guesses = torch.stack([model(**batch).logits_per_image.argmax(-1) for batch in batches])
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
    pool = draw_images(DRAWN, 500, options.seed)
    unseen_images = draw_images(PAIRS, 20, options.seed + 1)
    folder = options.output or CHECKPOINTS["resnet"].parent
    for family in VISION if options.model == "both" else [options.model]:
        start = time.perf_counter()
        text_from = folder / CHECKPOINTS["resnet"].name if options.model == "both" else CHECKPOINTS["resnet"]
        model = train(family, options.steps or STEPS[family], options.seed, pool, processor, text_from)
        minutes = (time.perf_counter() - start) / 60
        scores = accuracy(model, unseen_images, processor)
        path = folder / CHECKPOINTS[family].name
        export(model, known_tokens(processor), path)
        print(
            f"{path}: {minutes:.1f} min, zero-shot accuracy among {len(PAIRS)} labels: "
            + ", ".join(f"{kind} {score:.1%}" for kind, score in scores.items())
        )


if __name__ == "__main__":
    main()
