"""Draw examples/images anew: `python -m examples.draw_images`. Half of them are pairs that no training image shows."""

from itertools import cycle
from pathlib import Path

import numpy as np

from .shapes import HELD_OUT, SEEN, draw

SEED = 2021  # no other script draws with it
SIZES = [(160, 120), (128, 128), (120, 160), (200, 130), (144, 144), (240, 160)]
MODES = ["RGB", "RGB", "P", "RGB", "RGBA", "RGB"]


def main() -> None:
    rng = np.random.default_rng(SEED)
    pairs = [*HELD_OUT, *SEEN[3::6][: len(HELD_OUT)]]
    folder = Path(__file__).parent / "images"
    folder.mkdir(exist_ok=True)
    for pair, size, mode in zip(pairs, cycle(SIZES), cycle(MODES), strict=False):
        draw(*pair, rng, size).convert(mode).save(folder / f"{'-'.join(pair)}.png", optimize=True)


if __name__ == "__main__":
    main()
