"""A folder of images to embed, and readers of what is written."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from hf_clip import HFCLIPModel, HFCLIPProcessor

# sorted, as they come out; of several formats, modes and sizes
READABLE = ["0.png", "b/1.jpg", "b/c/2.JPG", "d 3.webp", "e,4.bmp", "f5.gif", "ä6.png"]
BROKEN = "broken.png"


def make_photos(folder: Path) -> Path:
    """Fill a folder with images, with a broken one, a text, and hidden files among them."""
    for seed, name in enumerate(READABLE):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(path, seed)
    (folder / BROKEN).write_text("no image")
    (folder / "notes.txt").write_text("no image either")
    (folder / ".hidden").mkdir()
    for name in ("._0.png", ".hidden/7.png"):
        shutil.copy(folder / "0.png", folder / name)
    return folder


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (40 + seed, 70 - seed, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert("P" if path.suffix == ".gif" else "RGB").save(path)


@cache
def load(repository: Path) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    return HFCLIPModel.from_pretrained(repository).eval(), HFCLIPProcessor.from_pretrained(repository)


def read(output: Path) -> dict[str, np.ndarray]:
    """Embeddings by path, from a file of any format."""
    if output.suffix == ".safetensors":
        with safe_open(output, "np") as file:
            paths, embeds = json.loads(file.metadata()["paths"]), file.get_tensor("embeddings")
    elif output.suffix == ".npy":
        paths, embeds = output.with_suffix(".paths.txt").read_text("utf-8").splitlines(), np.load(output)
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(output)
        paths, embeds = table["path"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)
    assert embeds.dtype == np.float32
    assert paths == sorted(paths)
    return dict(zip(paths, embeds, strict=True))


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for path, embeds in expected.items():
        np.testing.assert_allclose(found[path], embeds, rtol=0, atol=1e-6)


def left_behind(folder: Path) -> set[str]:
    """Files that no finished run leaves."""
    return {path.name for path in folder.iterdir() if path.suffix in (".new", ".lock") or ".partial" in path.name}
