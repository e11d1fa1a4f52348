"""Draw where-maps.png, the picture of docs/see.md: `python -m examples.draw_maps`."""

from pathlib import Path

import numpy as np
from PIL import Image

from hf_clip import load_clip, where
from hf_clip.plots.maps import draw_maps

from .shapes import PAIRS, draw_two
from .train_shapes import CHECKPOINTS

OUTPUT = Path(__file__).parent / "where-maps.png"
TEXTS = ["a red circle", "a blue square", "a circle"]


def main(output: Path = OUTPUT) -> None:
    """Map three texts in a picture of two shapes with the tiny ResNet."""
    source = str(CHECKPOINTS["resnet"])
    model, processor = load_clip(source)
    image, _ = draw_two(("red", "circle"), ("blue", "square"), np.random.default_rng(5), side=160)
    background = [f"a {color} {shape}" for color, shape in PAIRS]
    maps = where(model, processor, image, TEXTS, whole=True, shifts=4, background=background)
    draw_maps(image, TEXTS, maps.numpy(), output)
    with Image.open(output) as sheet:
        small = sheet.convert("RGB").resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)
    small.save(output, optimize=True)


if __name__ == "__main__":
    main()
