"""Zero-shot classification and embedding of files, end to end, and how both grow with the number of images."""

import os
import tempfile
from pathlib import Path

import clip
import torch
from PIL import Image
from tqdm import tqdm
from transformers import pipeline

from examples.train_shapes import CHECKPOINTS
from hf_clip import HFCLIPModel
from hf_clip.embedding.images import embed_images
from hf_clip.openai.convert import convert
from hf_clip.zero_shot.classifier import ZeroShotClassifier
from hf_clip.zero_shot.pipeline import ZeroShotImageClassificationPipeline

from .common import ORIGINAL, Row, in_fresh_process, rows_of, take_turns, timed
from .peers import OPTIMIZED, STOCK, Peers, build
from .preprocess import photos
from .tokenization import english_words

MODEL = "ViT-B/32"
TEMPLATE = "This is a photo of {}."
TASK = "zero-shot-image-classification"
IMAGES, LABELS, FILES, PART, BATCH = 100, 1000, 2000, 80, 16
SIZES = (100, 1_000, 10_000)
ALONE = "image encoding alone"


def measure(rounds: int, device: torch.device) -> list[Row]:
    peers = build(MODEL, device)
    return [*classification(peers, rounds), *files(peers), *growth()]


def classification(peers: Peers, rounds: int) -> list[Row]:
    """IMAGES photos against LABELS labels. What repeats one cost is measured on a part and multiplied, as noted."""
    images, labels = photos(IMAGES, 640, 480), english_words()[:LABELS]
    options = {"candidate_labels": labels, "hypothesis_template": TEMPLATE}
    parts = {"tokenizer": peers.processor.tokenizer, "image_processor": peers.processor.image_processor}

    def ours(model: HFCLIPModel) -> ZeroShotImageClassificationPipeline:
        return pipeline(
            TASK, model=model, **parts, pipeline_class=ZeroShotImageClassificationPipeline, batch_size=BATCH
        )

    stock_parts = {
        "tokenizer": peers.stock_processor.tokenizer,
        "image_processor": peers.stock_processor.image_processor,
    }
    stock = pipeline(TASK, model=peers.stock, **stock_parts)
    cached, classifier = ours(peers.exact), ZeroShotClassifier(peers.exact, peers.processor, labels, TEMPLATE)
    cached(images[0], **options)
    pixels = peers.processor(images=images, return_tensors="pt")["pixel_values"].to(peers.exact.device)
    turns = take_turns(
        {
            ALONE: lambda: encode_all(peers, pixels),
            "hf_clip pipeline, labels known": lambda: cached(images, **options),
            "hf_clip ZeroShotClassifier, labels known": lambda: classifier(images),
        },
        rounds,
        "labels known",
    )
    seconds = {
        f"{STOCK} pipeline": IMAGES * once(lambda: stock(images[0], **options), "stock pipeline"),
        ORIGINAL: turns[ALONE] + once(lambda: original_labels(peers, labels), "original"),
        "hf_clip pipeline": once(lambda: ours(peers.exact)(images, **options), "hf_clip pipeline"),
        f"{OPTIMIZED} pipeline": once(lambda: ours(peers.optimized)(images, **options), f"{OPTIMIZED} pipeline"),
        **turns,
    }
    notes = {
        f"{STOCK} pipeline": f"1 image, times {IMAGES}",
        ORIGINAL: "labels once, without preprocessing",
        **{peer: f"{time / turns[ALONE]:.2f} x encoding alone" for peer, time in turns.items() if peer != ALONE},
    }
    case = f"{MODEL}, {IMAGES} images x {LABELS} labels"
    return rows_of("zero-shot", case, seconds, IMAGES, baseline=f"{STOCK} pipeline", notes=notes)


def once(function, label: str) -> float:
    """Seconds of one call, for calls that take minutes."""
    with tqdm(total=1, desc=label, leave=False) as progress:
        seconds = timed(function)
        progress.update()
    return seconds


@torch.inference_mode()
def encode_all(peers: Peers, pixels: torch.Tensor) -> None:
    for batch in pixels.split(BATCH):
        peers.exact.encode_image(batch)


@torch.no_grad()
def original_labels(peers: Peers, labels: list[str]) -> None:
    tokens = clip.tokenize([TEMPLATE.format(label) for label in labels]).to(peers.exact.device)
    for batch in tokens.split(64):
        peers.original.encode_text(batch)


def files(peers: Peers) -> list[Row]:
    """JPEG files to embeddings, beside the model on ready tensors: each goes through all FILES once, PART at a time."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write_jpegs(Path(folder), FILES)
        parts = [paths[start : start + PART] for start in range(0, FILES, PART)]
        images = [Image.open(path) for path in parts[0]]
        pixels = peers.processor(images=images, return_tensors="pt")["pixel_values"].to(peers.exact.device)
        ways = {
            "ready tensors": lambda part: encode_all(peers, pixels),
            "hf_clip from files": lambda part: embed_images(peers.exact, peers.processor, part),
        }
        seconds = dict.fromkeys(ways, 0.0)
        encode_all(peers, pixels)
        for number, part in enumerate(tqdm(parts, desc="JPEG files", leave=False)):
            for peer in list(ways)[:: 1 - number % 2 * 2]:
                seconds[peer] += timed(ways[peer], part)
    case = f"{MODEL}, {FILES:,} JPEGs, 640x480"
    return rows_of("embedding files", case, seconds, FILES, baseline="ready tensors")


def write_jpegs(folder: Path, count: int, distinct: int = 100) -> list[Path]:
    """`count` JPEG files of 640x480, of which `distinct` differ."""
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for path, photo in zip(paths, photos(min(count, distinct), 640, 480), strict=False):
        photo.save(path, quality=90)
    for number, path in enumerate(paths[distinct:]):
        os.link(paths[number % distinct], path)
    return paths


def growth() -> list[Row]:
    """`hf-clip embed` on more and more files, with the tiny ViT of examples/, whose own time is next to nothing."""
    rows, before = [], None
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        convert(str(CHECKPOINTS["vit"]), model, report=lambda _: None)
        for count in tqdm(SIZES, desc="growth", leave=False):
            images = Path(folder, str(count))
            images.mkdir()
            write_jpegs(images, count)
            output = images.with_suffix(".safetensors")
            seconds, peak = in_fresh_process("-m", "hf_clip", "embed", images, "-o", output, "-m", model)
            note = f"peak {peak:,.0f} MiB"
            if before:
                each = (seconds - before[0]) / (count - before[1])
                note += f", {1000 * each:.2f} ms per image more"
            rows.append(Row("growth", "hf-clip embed, tiny ViT", f"{count:,} images", seconds, count, 1.0, note=note))
            before = (seconds, count)
    return rows
