"""A picture of images and the labels they were given. matplotlib is needed only here, and only to draw."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .files import replacing
from .image_processing_hf_clip import open_image

COLUMNS = 6
THUMBNAIL = (384, 384)
BAR, GROUND = "#4472b8", "#f0f0f0"


def supported_suffixes() -> set[str]:
    from matplotlib.backend_bases import FigureCanvasBase

    return {f".{suffix}" for suffix in FigureCanvasBase.get_supported_filetypes()}


def draw_scores(results: Sequence[tuple[str, list[dict[str, Any]]]], output: Path) -> None:
    """Draw each image, a path or URL, over its labels with bars for their scores; `output` is written whole or not."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(results))
    rows = math.ceil(len(results) / columns)
    labels = max(len(answers) for _, answers in results)
    bars_height = 0.22 * labels + 0.1
    size = (2.4 * max(columns, 2), (2.4 + bars_height) * rows + 0.2)
    figure = Figure(size, dpi=150, layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.4, bars_height] * rows)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (path, answers) in enumerate(results):
        row, column = divmod(index, columns)
        picture, bars = axes[2 * row, column], axes[2 * row + 1, column]
        picture.imshow(_thumbnail(path))
        picture.set_anchor("S")
        picture.set_title(_short(Path(path).name), fontsize=8, parse_math=False)
        for place, answer in enumerate(answers):
            bars.barh(place, 1, color=GROUND, height=0.86)
            bars.barh(place, answer["score"], color=BAR, height=0.86, alpha=0.6)
            bars.text(0.03, place, _short(answer["label"]), va="center", fontsize=7, parse_math=False)
            bars.text(0.97, place, f"{answer['score']:.0%}", va="center", ha="right", fontsize=7)
        bars.set(xlim=(0, 1), ylim=(labels - 0.4, -0.6))
    with replacing(output, "new") as work:
        figure.savefig(work, format=output.suffix[1:])


def _thumbnail(path: str) -> Image.Image:
    with open_image(path) as image:
        image = image.convert("RGB")
        image.thumbnail(THUMBNAIL)
    return image


def _short(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:29]}…"


__all__ = ["draw_scores", "supported_suffixes"]
