"""A figure of an image with maps over it."""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from PIL import Image

from .figures import save_figure, use_fallback_fonts

MAPS_PER_ROW = 4
CELL = 2.8  # inches
LONGEST_SIDE = 768
# told apart with color blindness: one even in lightness, one of two hues
COLOR_MAP, SIGNED_COLOR_MAP = "cividis", "PuOr_r"
OPACITY = 0.6
FLATTEST, STEEPEST = 0.3, 3  # height over width
CHARACTERS, LINES = 32, 3  # of a title


def draw_maps(
    image: Image.Image, titles: Sequence[str], maps: np.ndarray, output: Path, method: str | None = None
) -> None:
    """Write `maps_figure` in the format of the suffix of `output`; a failure leaves no partial file."""
    save_figure(maps_figure(image, titles, maps, method), output)


def maps_figure(image: Image.Image, titles: Sequence[str], maps: np.ndarray, method: str | None = None) -> Any:
    """Draw an image, then each map over a gray copy of it, all with one color scale.

    Maps with negative values get two hues that meet at 0, so that a text that fits nowhere has one hue alone, and its
    title says so. Other maps get a scale from 0 on.

    Args:
        image: The image.
        titles: The titles of the maps.
        maps: (maps, height, width) of the image; NaN, outside the crop of the model, has no color.
        method: The name of the method, written above the image.

    Returns:
        A matplotlib figure without a window.
    """
    from matplotlib.figure import Figure

    signed = bool(np.nanmin(maps) < 0)
    highest = [np.nanmax(values) for values in maps]
    titles = [
        _wrapped(title) + ("\n(fits nowhere)" if signed and high <= 0 else "")
        for title, high in zip(titles, highest, strict=True)
    ]
    figure = Figure(dpi=150)
    above = [f"{image.width} x {image.height}" + (f"\n{method}" if method else ""), *titles]
    axes, bar = _lay_out(figure, above, image.height / image.width)
    picture = image.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    axes[0].imshow(picture)
    limit = float(np.nanmax(np.abs(maps))) or 1.0
    colors = {"cmap": SIGNED_COLOR_MAP if signed else COLOR_MAP, "vmin": -limit if signed else 0.0, "vmax": limit}
    for axis, values in zip(axes[1:], maps, strict=True):
        axis.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255)
        # the map may be larger than the thumbnail: both span the same axes
        extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
        shown = axis.imshow(_thinned(values), alpha=OPACITY, extent=extent, **colors)
    figure.colorbar(shown, cax=bar).ax.tick_params(labelsize=7)
    use_fallback_fonts(figure)
    return figure


def _lay_out(figure: Any, titles: Sequence[str], aspect: float) -> tuple[list[Any], Any]:
    """Size the figure and add the axes of the maps and of the color bar.

    matplotlib's layout engines cut titles of several lines above images with a fixed aspect ratio, so the positions are
    computed here.
    """
    columns = min(MAPS_PER_ROW, len(titles))
    above = 0.25 + 0.15 * max(title.count("\n") + 1 for title in titles)
    cell = CELL * min(max(aspect, FLATTEST), STEEPEST) + above
    width, height = CELL * columns + 0.8, cell * math.ceil(len(titles) / columns)
    figure.set_size_inches(width, height)
    axes = []
    for place, title in enumerate(titles):
        row, column = divmod(place, columns)
        left, bottom = CELL * column + 0.05, height - cell * (row + 1) + 0.05
        box = (left / width, bottom / height, (CELL - 0.1) / width, (cell - above) / height)
        axes.append(figure.add_axes(box, anchor="S"))
        axes[-1].set_axis_off()
        axes[-1].set_title(title, fontsize=9, parse_math=False)
    return axes, figure.add_axes((1 - 0.7 / width, 0.1, 0.15 / width, 0.8))


def _thinned(values: np.ndarray) -> np.ndarray:
    """Subsample a map to the resolution of the figure."""
    step = max(1, max(values.shape) // LONGEST_SIDE)
    return values[::step, ::step]


def _wrapped(text: str) -> str:
    """Wrap a title to at most LINES lines; the rest is cut."""
    return "\n".join(wrap(text, CHARACTERS, max_lines=LINES, placeholder=" …")) or text


__all__ = ["draw_maps", "maps_figure"]
