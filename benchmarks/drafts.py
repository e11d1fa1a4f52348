"""`python -m benchmarks.drafts`: time and levels of `decode="draft"` beside full decoding, at 12 megapixels.

The photos are the two of scikit-learn, enlarged with grain added or laid out as a mosaic of their own detail, or files
of your own.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageOps
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images

from hf_clip import HFCLIPImageProcessor, ImageRef
from hf_clip.data.images import draft_side

from .common import take_turns

SIZE = (4000, 3000)
QUALITY = 92
GRAIN = 4  # levels


def photos() -> Iterator[tuple[str, bytes]]:
    """Yield JPEGs of SIZE and their names."""
    rng = np.random.default_rng(0)
    for number, pixels in enumerate(load_sample_images().images):
        small, noise = Image.fromarray(pixels), rng.normal(0, GRAIN, (SIZE[1], SIZE[0], 1))
        large = np.asarray(small.resize(SIZE, Image.Resampling.BICUBIC)) + noise
        yield f"photo {number}, enlarged", _jpeg(Image.fromarray(large.clip(0, 255).astype(np.uint8)))
        mosaic, (width, height) = Image.new("RGB", SIZE), small.size
        for column, x in enumerate(range(0, SIZE[0], width)):
            for row, y in enumerate(range(0, SIZE[1], height)):
                mosaic.paste(small if (column + row) % 2 else ImageOps.mirror(small), (x, y))
        yield f"photo {number}, mosaic", _jpeg(mosaic)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def main(
    files: Annotated[list[Path] | None, typer.Argument(help="JPEGs of your own.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns that each way gets; medians are reported.")] = 5,
) -> None:
    """Measure decoding and preparing a photo, in full and as a draft."""
    processor = HFCLIPImageProcessor()
    table = Table("photo", "full, ms", "draft, ms", "ratio", "mean levels off", "most", box=SIMPLE_HEAD)
    given = [(path.name, path.read_bytes()) for path in files] if files else photos()
    for name, content in given:

        def levels(side: int | None, content: bytes = content) -> np.ndarray:
            image = ImageRef.of(content).open(draft_side=side)
            pixels = processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
            return np.asarray(pixels["pixel_values"], np.int16)

        ways = {
            "full": lambda levels=levels: levels(None),
            "draft": lambda levels=levels: levels(draft_side(processor, "draft")),
        }
        off = np.abs(ways["draft"]() - ways["full"]())
        seconds = take_turns(ways, rounds, name)
        times = [f"{1000 * seconds[way]:.0f}" for way in ways]
        table.add_row(name, *times, f"{seconds['full'] / seconds['draft']:.1f}", f"{off.mean():.2f}", f"{off.max()}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
