"""Embed the same JPEGs through hf_clip and other tools, and count the embeddings equal to the original's.

Processes of Ray and Daft are started and models loaded in each turn, as in a job; importing is not timed.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from examples.train_shapes import CHECKPOINTS
from hf_clip import embed_images, load_clip
from hf_clip.data.sources import open_source
from hf_clip.embedding.engine import EmbedOptions, Pending, embed_source, run_here
from hf_clip.embedding.identity import SAME_PRECISION, store_settings
from hf_clip.embedding.parts import PartStore, iter_parts
from hf_clip.openai.convert import Layout, convert
from hf_clip.utils.places import place_at

from .common import Row, rows_of, take_turns

COUNT, BATCH, SIDES = 500, 32, (480, 360)
OURS, LOADER = "hf-clip embed DIR", "DataLoader, stock processor and model"
Rows = dict[str, np.ndarray]


def measure(rounds: int, count: int = COUNT) -> list[Row]:
    """Measure engines on a tiny ViT, where decoding takes the time."""
    with tempfile.TemporaryDirectory() as folder:
        model, photos = Path(folder) / "clip", Path(folder) / "photos"
        convert(str(CHECKPOINTS["vit"]), model, Layout.transformers, report=lambda _: None)
        draw_photos(photos, count)
        paths = sorted(map(str, photos.iterdir()))
        expected = dict(zip(paths, embed_images(*load_clip(model), paths, batch_size=BATCH).numpy(), strict=True))
        found: dict[str, Rows] = {}
        ways = {name: recorded(name, way, found) for name, way in peers(str(model), photos, paths).items()}
        seconds = take_turns(ways, rounds, "engines")
        notes = {name: agreement(rows, expected) for name, rows in found.items()}
        return rows_of(
            "scale", f"{count} JPEGs of {SIDES[0]}x{SIDES[1]}, tiny ViT", seconds, count, LOADER, notes=notes
        )


def draw_photos(folder: Path, count: int) -> None:
    """Write JPEGs that compress like photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize(SIDES, Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)


def recorded(name: str, way: Callable[[], Rows], found: dict[str, Rows]) -> Callable[[], None]:
    """Record the embeddings of a way."""

    def call() -> None:
        found[name] = way()

    return call


def agreement(rows: Rows, expected: Rows) -> str:
    """Count the embeddings equal to the original's in bits, and up to rounding."""
    unit = {path: row / np.linalg.norm(row) for path, row in rows.items()}
    equal = sum(np.array_equal(rows[path], row) for path, row in expected.items())
    near = sum(bool(np.abs(unit[path] - row).max() < 1e-5) for path, row in expected.items())
    return f"{equal} of {len(expected)} equal, {near} up to rounding"


def peers(model: str, photos: Path, paths: list[str]) -> dict[str, Callable[[], Rows]]:
    """List the installed tools."""
    ways = {LOADER: lambda: data_loader(model, paths), OURS: lambda: hf_clip(model, photos)}
    if find_spec("ray"):
        ways["hf-clip embed DIR --engine ray"] = lambda: hf_clip(model, photos, ray=True)
        ways["Ray Data's recipe"] = lambda: ray_recipe(model, paths)
    if find_spec("daft"):
        ways["Daft, embed_image"] = lambda: daft_embed(model, paths)
    return ways


def hf_clip(model: str, photos: Path, ray: bool = False) -> Rows:
    """Embed as the command does."""
    with tempfile.TemporaryDirectory() as output:
        clip, options = load_clip(model), EmbedOptions(model, BATCH)
        settings = {**store_settings(*clip, "float32", True), "row_dtype": "float32"}
        with PartStore(f"{output}/emb", settings, SAME_PRECISION) as store:
            run = partial(run_here, options=options, load=lambda: clip, fill=True)
            if ray:
                from hf_clip.embedding.ray_engine import run_on_ray

                run = partial(run_on_ray, store=store, options=options, check=lambda: None)
            embed_source(Pending(open_source(str(photos)), store), run, delay=3600)
        return {
            str(photos / path): row
            for columns, rows in iter_parts(place_at(f"{output}/emb"))
            for path, row in zip(columns["path"].to_pylist(), rows, strict=True)
        }


class Stock:
    """Embed decoded images with transformers' own classes, as recipes do."""

    def __init__(self, model: str):
        self.model, self.processor = AutoModel.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)

    def __call__(self, images: list) -> np.ndarray:
        """Return unit vectors."""
        inputs = self.processor(images=images, return_tensors="pt")
        with torch.inference_mode():
            embeds = self.model.get_image_features(**inputs).pooler_output
        return torch.nn.functional.normalize(embeds, dim=-1).numpy()


def data_loader(model: str, paths: list[str]) -> Rows:
    """Run the loop that people write."""
    stock = Stock(model)
    loader = torch.utils.data.DataLoader(
        paths, BATCH, collate_fn=lambda some: (some, [Image.open(path).convert("RGB") for path in some]), num_workers=1
    )
    return {path: row for some, images in loader for path, row in zip(some, stock(images), strict=True)}


class RayStock(Stock):
    """Embed a batch of Ray Data."""

    def __call__(self, batch: dict) -> dict:
        """Return paths and embeddings."""
        return {"path": batch["path"], "embedding": super().__call__(list(batch["image"]))}


def ray_recipe(model: str, paths: list[str]) -> Rows:
    """Run the batch inference of Ray Data's documentation: read_images, then a class that embeds."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        data = ray.data.read_images(paths, mode="RGB", include_paths=True)
        data = data.map_batches(RayStock, fn_constructor_args=(model,), batch_size=BATCH, concurrency=1)
        return {row["path"]: row["embedding"] for row in data.iter_rows()}
    finally:
        ray.shutdown()


def daft_embed(model: str, paths: list[str]) -> Rows:
    """Run Daft's embed_image."""
    import daft
    from daft.functions import decode_image, download, embed_image

    frame = daft.from_pydict({"path": paths})
    image = decode_image(download(frame["path"]), mode="RGB")
    frame = frame.with_column("embedding", embed_image(image, provider="transformers", model=model))
    found = frame.select("path", "embedding").to_pydict()
    return {path: np.asarray(row) for path, row in zip(found["path"], found["embedding"], strict=True)}
