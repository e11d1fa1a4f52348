"""Contact sheets: thumbnails with captions, as a figure or a web page."""

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..data.images import Exif
from ..utils.files import replacing
from .figures import save_figure

THUMBNAILS_PER_ROW = 5
SIDE = 256
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 2em; }}
main {{ display: flex; flex-wrap: wrap; gap: 1em; }}
figure {{ margin: 0; width: {side}px; }}
img {{ max-width: {side}px; max-height: {side}px; }}
figcaption {{ overflow-wrap: anywhere; color: #444; }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
"""
FIGURE = "<figure>{image}<figcaption>{caption}</figcaption></figure>"


class Picture(Protocol):
    """Anything that opens an image, such as an `ImageRef`."""

    def open(self, exif: Exif) -> Any:
        """Return the image, turned as its EXIF orientation says if `exif` is "apply"."""


def draw_sheet(images: Sequence[tuple[Picture, str]], title: str, output: Path, exif: Exif = "ignore") -> int:
    """Draw thumbnails with captions as a figure, and return how many images opened; without any nothing is written."""
    from matplotlib.figure import Figure

    columns = min(THUMBNAILS_PER_ROW, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure((2.2 * columns, 2.5 * rows + 0.5), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    thumbnails = [thumbnail_of(source, exif) for source, _ in images]
    for axis, thumbnail, (_, caption) in zip(axes.flat, thumbnails, images, strict=False):
        if thumbnail is not None:
            axis.imshow(thumbnail)
        axis.set_title(caption[-40:], fontsize=7, y=-0.12, parse_math=False)
    opened = sum(thumbnail is not None for thumbnail in thumbnails)
    if opened:
        save_figure(figure, output)
    return opened


def write_sheet(images: Sequence[tuple[Picture, str]], title: str, output: Path, exif: Exif = "ignore") -> int:
    """Write a web page with embedded thumbnails, and return how many images opened; without any nothing is written."""
    thumbnails = [thumbnail_of(source, exif) for source, _ in images]
    figures = "\n".join(
        FIGURE.format(image=_embedded(thumbnail), caption=html.escape(caption))
        for thumbnail, (_, caption) in zip(thumbnails, images, strict=True)
    )
    opened = sum(thumbnail is not None for thumbnail in thumbnails)
    if opened:
        page = PAGE.format(title=html.escape(title), side=SIDE, figures=figures)
        with replacing(output, "new") as work:
            work.write_text(page, encoding="utf-8", errors="backslashreplace")
    return opened


def _embedded(thumbnail: Image.Image | None) -> str:
    if thumbnail is None:
        return "<p>cannot be opened</p>"
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG")
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="">'


def thumbnail_of(source: Picture, exif: Exif = "ignore") -> Image.Image | None:
    """Return an RGB thumbnail, or None for an image that cannot be opened."""
    try:
        image = source.open(exif).convert("RGB")
        image.thumbnail((SIDE, SIDE))
        return image
    except Exception:  # plugins of Pillow raise arbitrary exceptions for damaged files
        return None


__all__ = ["draw_sheet", "thumbnail_of", "write_sheet"]
