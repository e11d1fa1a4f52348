"""The small world that the example models know: colored shapes on gray patterns, and captions for them."""

from colorsys import hsv_to_rgb
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
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

PAIRS = list(product(COLORS, SHAPES))
# never drawn in training
HELD_OUT = [("red", "circle"), ("blue", "square"), ("green", "star"), ("purple", "triangle"), ("orange", "cross")]
SEEN = [pair for pair in PAIRS if pair not in HELD_OUT]

# how far along from a first color to a second one each pixel is; `x` and `y` are in units of the image's short side
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
    "{color} {shape}",
    "{color} {shape}",
    "{shape} in {color}",
    "{shape}, {color}",
    "{shape} that is {color}",
]


def caption(color: str | None, shape: str, rng: np.random.Generator) -> str:
    """Describe the drawing in one of many wordings; without a color, the shape alone."""
    words = rng.choice(ORDERS).format(color=color, shape=shape) if color else shape
    return rng.choice(TEMPLATES).format(words)


def draw(color: str | None, shape: str, rng: np.random.Generator, size: tuple[int, int] | None = None) -> Image.Image:
    """One shape near the middle of an image of any size, in any color at all if None is given."""
    width, height = size or rng.integers(64, 100, 2)
    ink = _ink(color, rng)
    image = _background(width, height, rng)
    _paint(image, (0, 0, width, height), ink, shape, rng)
    return image


def draw_two(
    first: tuple[str, str], second: tuple[str, str], rng: np.random.Generator, side: int = 80, square: bool = False
) -> tuple[Image.Image, np.ndarray]:
    """Two shapes beside or above each other on one background, and where each is: (2, height, width), booleans.

    The picture is twice as long as high, or the other way round; with `square` it is 2 `side` in both directions.
    """
    right, down = [(side, 0), (0, side)][rng.integers(2)]
    width, height = (2 * side, 2 * side) if square else (side + right, side + down)
    image = _background(width, height, rng)
    boxes = [(0, 0, width - right, height - down), (right, down, width, height)]
    masks = [
        _paint(image, box, _ink(color, rng), shape, rng)
        for (color, shape), box in zip((first, second), boxes, strict=True)
    ]
    return image, np.stack([np.asarray(mask) > 127 for mask in masks])


def draw_small(
    first: tuple[str, str], second: tuple[str, str], rng: np.random.Generator, side: int = 240
) -> tuple[Image.Image, np.ndarray]:
    """Two shapes apart from each other in a square picture, a sixth as wide as it, and where each is, as `draw_two`."""
    image, cell = _background(side, side, rng), side // 5
    while True:
        corners = rng.integers(0, side - cell, (2, 2))
        if np.abs(corners[0] - corners[1]).max() > 1.5 * cell:
            break
    masks = [
        _paint(image, (x, y, x + cell, y + cell), _ink(color, rng), shape, rng)
        for (color, shape), (x, y) in zip((first, second), corners.tolist(), strict=True)
    ]
    return image, np.stack([np.asarray(mask) > 127 for mask in masks])


def _ink(color: str | None, rng: np.random.Generator) -> np.ndarray:
    """A shade of a color; of any at all if None is given."""
    ink = COLORS[color] if color else 255 * np.array(hsv_to_rgb(rng.random(), rng.uniform(0.7, 1), rng.uniform(0.5, 1)))
    return np.clip(ink + rng.normal(0, 10, 3), 0, 255)


def _paint(
    image: Image.Image, box: tuple[int, int, int, int], ink: np.ndarray, shape: str, rng: np.random.Generator
) -> Image.Image:
    """Paint a shape near the middle of a box (left, top, right, bottom); its mask is as large as the image."""
    corner, sides = np.array(box[:2]), np.array(box[2:]) - box[:2]
    side = min(sides)
    radius = rng.uniform(0.36, 0.47) * side
    center = corner + sides / 2 + rng.uniform(-0.6, 0.6, 2) * (side / 2 - radius)
    outline = SHAPES[shape] @ _rotation(rng.uniform(-0.03, 0.03)) * radius + center
    smooth = 4
    mask = Image.new("L", (smooth * image.width, smooth * image.height))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in smooth * outline], fill=255)
    mask = mask.reduce(smooth)
    image.paste(tuple(ink.astype(int)), mask=mask)
    return mask


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A pattern of two tinted grays."""
    y, x = np.mgrid[:height, :width] / min(width, height)
    x, y = np.moveaxis(np.stack([x, y], -1) @ _rotation(rng.random()), -1, 0)
    mix = rng.choice(list(BACKGROUNDS.values()))(x, y, rng)[..., None]
    first, second = rng.uniform(30, 225, (2, 1)) + rng.uniform(-20, 20, (2, 3))
    return Image.fromarray((first + mix * (second - first) * rng.uniform(0, 1)).clip(0, 255).astype(np.uint8))


def _rotation(turns: float) -> np.ndarray:
    angle = 2 * np.pi * turns
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
