"""A figure of images with the scores of their labels as bars."""

import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import Exif, ImageRef
from .figures import BAR_BACKGROUND, save_figure, shortened

IMAGES_PER_ROW = 6
THUMBNAIL = (384, 384)
BARS = ("#4472b8", "#e8963c", "#3f9b63", "#8a5fbf")
MODEL_GAP = 0.4  # between the bars of two models, in bars


def draw_scores(
    images: Sequence[str | os.PathLike | ImageRef],
    answers: Mapping[str, Sequence[list[dict[str, Any]]]],
    output: Path,
    truths: Sequence[str | None] | None = None,
    notes: Sequence[str] | None = None,
    exif: Exif = "ignore",
) -> None:
    """Draw each image above bars with the scores of its labels; a failure leaves no partial file.

    Args:
        images: Paths, URLs or references.
        answers: For each model, by name, the labels of each image as `{"label", "score"}`.
        output: The file to write, in the format of its suffix.
        truths: The true label of each image or None; it is written in bold.
        notes: A line below the name of each image.
        exif: "apply" turns images as their EXIF orientation says; "ignore" shows what the original sees.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = min(IMAGES_PER_ROW, len(images))
    rows = math.ceil(len(images) / columns)
    labels = max(len(ranked) for of_model in answers.values() for ranked in of_model)
    step = labels + MODEL_GAP
    bars_height = 0.22 * (step * len(answers) - MODEL_GAP) + 0.1
    size = (2.4 * max(columns, 2), (2.4 + bars_height) * rows + 0.2 + 0.3 * (len(answers) > 1))
    figure = Figure(size, dpi=150, layout="constrained")
    axes: Any = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.4, bars_height] * rows)
    for axis in axes.flat:
        axis.set_axis_off()
    for index, image in enumerate(map(ImageRef.of, images)):
        row, column = divmod(index, columns)
        picture, bars = axes[2 * row, column], axes[2 * row + 1, column]
        truth = truths[index] if truths else None
        title = [truth or shortened(Path(image.name).name), *([notes[index]] if notes else [])]
        picture.imshow(_thumbnail(image, exif))
        picture.set_anchor("S")
        picture.set_title("\n".join(title), fontsize=8, parse_math=False)
        for model, (color, of_model) in enumerate(zip(cycle(BARS), answers.values())):
            for rank, answer in enumerate(of_model[index]):
                place, weight = step * model + rank, "bold" if answer["label"] == truth else "normal"
                text: dict[str, Any] = {"va": "center", "fontsize": 7, "weight": weight}
                bars.barh(place, 1, color=BAR_BACKGROUND, height=0.86)
                bars.barh(place, answer["score"], color=color, height=0.86, alpha=0.6)
                bars.text(0.03, place, shortened(answer["label"]), parse_math=False, **text)
                bars.text(0.97, place, f"{answer['score']:.0%}", ha="right", **text)
        bars.set(xlim=(0, 1), ylim=(step * len(answers) - MODEL_GAP - 0.4, -0.6))
    if len(answers) > 1:
        handles = [Patch(color=color, alpha=0.6) for color, _ in zip(cycle(BARS), answers)]
        figure.legend(handles, list(answers), loc="outside lower center", ncols=len(answers), frameon=False, fontsize=9)
    save_figure(figure, output)


def _thumbnail(image: ImageRef, exif: Exif) -> Image.Image:
    shown = image.open(exif).convert("RGB")
    shown.thumbnail(THUMBNAIL)
    return shown


__all__ = ["draw_scores"]
