"""`python -m benchmarks.localization`: how well maps point, and the cost of dense features.

Pointing game (Zhang et al., 2018, "Top-down Neural Attention by Excitation Backprop"): in a picture of two shapes, the
highest value of the map for one of them lies in that shape, or at most 15 pixels from it in an image of 500, here 3 %
of the longer side. The models of examples/ have never seen two shapes in training. Chance is a random map.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from examples.shapes import PAIRS, draw_small, draw_two
from examples.train_shapes import CHECKPOINTS
from hf_clip import load_clip, where
from hf_clip.localization.boxes import find_peak
from hf_clip.localization.maps import ALL_METHODS

from .common import take_turns
from .machine import describe
from .peers import EXACT, OPTIMIZED, build

CHANCE = "random map"
TOLERANCE = 15 / 500
MEASURES = ("in the shape", "or 3 % from it", "nearer to it", "average precision")
ALL_TEXTS = [f"a {color} {shape}" for color, shape in PAIRS]
Scores = dict[str, float]


class Layout(str, Enum):
    oblong = "oblong"
    square = "square"
    small = "small"


DRAW = {Layout.oblong: draw_two, Layout.square: partial(draw_two, square=True), Layout.small: draw_small}


def pictures(count: int, seed: int = 0, layout: Layout = Layout.oblong) -> Iterator[tuple]:
    """Yield pictures of two shapes, their texts and their masks (2, height, width)."""
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(count), desc="pictures"):
        first, second = (PAIRS[place] for place in rng.choice(len(PAIRS), 2, replace=False))
        image, masks = DRAW[layout](first, second, rng)
        yield image, [f"a {color} {shape}" for color, shape in (first, second)], masks


def point(family: str, count: int, shifts: int, layout: Layout, seed: int, methods: Sequence[str]) -> dict[str, Scores]:
    """Return hits and average precision of each method, and of random maps."""
    source = str(CHECKPOINTS[family])
    model, processor = load_clip(source)
    rng, found = np.random.default_rng(1), defaultdict(list)
    for image, texts, masks in pictures(count, seed, layout):
        maps = {
            name(method, times): where(
                model, processor, image, texts, method, whole=True, shifts=times, background=ALL_TEXTS
            ).numpy()
            for method in methods
            for times in sorted({1, shifts})
        }
        maps[CHANCE] = rng.random(masks.shape)
        for method, values in maps.items():
            for map, mask, other in zip(values, masks, masks[::-1], strict=True):
                found[method].append(measures(map, mask, other))
    return {method: dict(zip(MEASURES, np.mean(rows, 0).tolist(), strict=True)) for method, rows in found.items()}


def name(method: str, shifts: int) -> str:
    return method if shifts == 1 else f"{method}, {shifts}x{shifts} shifts"


def measures(map: np.ndarray, mask: np.ndarray, other: np.ndarray) -> tuple[float, float, float, float]:
    """Return if the peak lies in `mask`, within TOLERANCE of it, nearer to it than `other`; and average precision."""
    peak = np.array(find_peak(torch.from_numpy(map))[::-1])
    near, far = (np.linalg.norm(np.argwhere(each).mean(0) - peak) for each in (mask, other))
    almost = np.linalg.norm(np.argwhere(mask) - peak, axis=1).min() <= TOLERANCE * max(mask.shape)
    precision = average_precision_score(mask.ravel(), map.ravel())
    return float(mask[tuple(peak)]), float(almost), float(near < far), precision


@torch.no_grad()
def dense_cost(name: str, rounds: int, batch: int = 1) -> Scores:
    """Return the seconds of dense features over those of the pooled embedding."""
    peers = build(name, torch.device("cpu"))
    pixels = torch.randn(batch, 3, peers.resolution, peers.resolution)
    ratios = {}
    for peer, model in ((EXACT, peers.exact), (OPTIMIZED, peers.optimized)):
        ways = {
            "pooled": lambda model=model: model.encode_image(pixels),
            "dense": lambda model=model: model.get_dense_image_features(pixels),
        }
        seconds = take_turns(ways, rounds, f"{name}, {peer}")
        ratios[peer] = seconds["dense"] / seconds["pooled"]
    return ratios


def show(console: Console, title: str, rows: dict[str, Scores]) -> None:
    """Print one table."""
    table = Table("", *next(iter(rows.values())), title=title, box=SIMPLE_HEAD, title_justify="left")
    for name, scores in rows.items():
        table.add_row(name, *(f"{score:.3f}" for score in scores.values()))
    console.print(table)


def main(
    count: Annotated[int, typer.Option("--pictures", help="Pictures of two shapes.")] = 500,
    shifts: Annotated[int, typer.Option(min=1, help="Shifts in each direction, beside none.")] = 2,
    models: Annotated[str, typer.Option(help="Architectures to time dense features of.")] = "ViT-B/32,RN50",
    layout: Annotated[
        Layout,
        typer.Option(
            help="oblong: two shapes fill the picture. square: each takes a quarter. small: each is as wide as a sixth."
        ),
    ] = Layout.oblong,
    seed: Annotated[int, typer.Option(help="Seed of the pictures.")] = 0,
    methods: Annotated[str, typer.Option(help="Methods to measure.")] = ",".join(ALL_METHODS),
    rounds: Annotated[int, typer.Option(help="Turns that each way gets; medians are reported.")] = 9,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the numbers.")] = Path(
        "build/benchmarks/localization.json"
    ),
) -> None:
    """Measure the pointing game on drawn shapes, and the time of dense features over the pooled embedding.

    Example: python -m benchmarks.localization --pictures 100 --models ViT-B/32
    """
    console = Console(width=max(100, Console().width))
    console.print(describe(torch.device("cpu")))
    pointing = {family: point(family, count, shifts, layout, seed, methods.split(",")) for family in CHECKPOINTS}
    for family, rows in pointing.items():
        show(console, f"shapes-{family}, {count} pictures", rows)
    costs = {name: dense_cost(name, rounds) for name in filter(None, models.split(","))}
    if costs:
        show(console, "seconds of dense features over the pooled embedding", costs)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(
        json.dumps({"pictures": count, "pointing": pointing, "dense over pooled": costs}, indent=1) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
