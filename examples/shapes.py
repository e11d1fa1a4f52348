"""The small world that the example models know: coloured shapes on grey patterns, and captions for them."""

from colorsys import hsv_to_rgb
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (215, 30, 30),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (35, 150, 50),
    "cyan": (60, 215, 225),
    "blue": (35, 70, 215),
    "purple": (125, 40, 165),
    "pink": (250, 110, 185),
}


def _arc(start: float, stop: float, points: int, *radii: float) -> np.ndarray:
    """Points (N, 2) from one angle to another, clockwise from the top, in turns; several radii alternate."""
    angles = 2 * np.pi * np.linspace(start, stop, points, endpoint=False)
    return np.stack([np.sin(angles), -np.cos(angles)], 1) * np.resize(radii or 1, points)[:, None]


def _cross(arm: float = 0.33) -> np.ndarray:
    quarter = np.array([(-arm, -0.94), (arm, -0.94), (arm, -arm)])
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, n) for n in range(4)])


# outlines in the unit circle, y pointing down
SHAPES = {
    "circle": _arc(0, 1, 48),
    "square": _arc(1 / 8, 9 / 8, 4),
    "triangle": _arc(0, 1, 3),
    "star": _arc(0, 1, 10, 1, 0.42),
    "cross": _cross(),
}

PAIRS = list(product(COLOURS, SHAPES))
# never drawn in training
HELD_OUT = [("red", "circle"), ("blue", "square"), ("green", "star"), ("purple", "triangle"), ("orange", "cross")]
SEEN = [pair for pair in PAIRS if pair not in HELD_OUT]

# how far along from a first colour to a second one each pixel is; `x` and `y` are in units of the image's short side
BACKGROUNDS = {
    "plain": lambda x, y, rng: 0 * x,
    "gradient": lambda x, y, rng: (x - x.min()) / np.ptp(x),
    "stripes": lambda x, y, rng: x * rng.uniform(3, 10) % 1 > 0.5,
    "checks": lambda x, y, rng: (x * rng.uniform(2, 6) % 1 > 0.5) ^ (y * rng.uniform(2, 6) % 1 > 0.5),
    "waves": lambda x, y, rng: 0.5 + 0.5 * np.sin(rng.uniform(10, 40) * (x + 0.1 * np.sin(rng.uniform(5, 20) * y))),
    "noise": lambda x, y, rng: rng.random(x.shape),
}

TEMPLATES = [
    "{}",
    "a {}",
    "the {}.",
    "this is a {}",
    "a photo of a {}.",
    "This is a photo of {}.",
    "a drawing of a {}",
    "a {} on some background",
]
ORDERS = [
    "{colour} {shape}",
    "{colour} {shape}",
    "{shape} in {colour}",
    "{shape}, {colour}",
    "{shape} that is {colour}",
]


def caption(colour: str | None, shape: str, rng: np.random.Generator) -> str:
    """What is drawn, in one of many wordings; the shape alone without a colour."""
    words = rng.choice(ORDERS).format(colour=colour, shape=shape) if colour else shape
    return rng.choice(TEMPLATES).format(words)


def draw(colour: str | None, shape: str, rng: np.random.Generator, size: tuple[int, int] | None = None) -> Image.Image:
    """One shape near the middle of an image of any size, in any colour at all if None is given."""
    width, height = size or rng.integers(64, 100, 2)
    side = min(width, height)
    ink = (
        COLOURS[colour]
        if colour
        else 255 * np.array(hsv_to_rgb(rng.random(), rng.uniform(0.7, 1), rng.uniform(0.5, 1)))
    )
    ink = np.clip(ink + rng.normal(0, 10, 3), 0, 255)
    image = _background(width, height, rng)

    radius = rng.uniform(0.36, 0.47) * side
    centre = np.array([width, height]) / 2 + rng.uniform(-0.6, 0.6, 2) * (side / 2 - radius)
    outline = SHAPES[shape] @ _rotation(rng.uniform(-0.03, 0.03)) * radius + centre
    smooth = 4
    mask = Image.new("L", (smooth * width, smooth * height))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in smooth * outline], fill=255)
    image.paste(tuple(ink.astype(int)), mask=mask.reduce(smooth))
    return image


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A pattern of two tinted greys."""
    y, x = np.mgrid[:height, :width] / min(width, height)
    x, y = np.moveaxis(np.stack([x, y], -1) @ _rotation(rng.random()), -1, 0)
    mix = rng.choice(list(BACKGROUNDS.values()))(x, y, rng)[..., None]
    first, second = rng.uniform(30, 225, (2, 1)) + rng.uniform(-20, 20, (2, 3))
    return Image.fromarray((first + mix * (second - first) * rng.uniform(0, 1)).clip(0, 255).astype(np.uint8))


def _rotation(turns: float) -> np.ndarray:
    angle = 2 * np.pi * turns
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
