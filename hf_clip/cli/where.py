"""`hf-clip where`."""

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..utils.files import check_output, replacing
from ..utils.text import say
from . import common
from .blocks import ExactLoading, expanded
from .classify import check_plot
from .common import CommandError
from .options import ADVANCED, AllowScheme, AsJson, ExifMode, ExifUse, Force, ModelId
from .sources import check_source

if TYPE_CHECKING:
    import torch


class Method(str, Enum):
    """Methods of making maps."""

    dense = "dense"
    gradient = "gradient"
    rollout = "rollout"
    windows = "windows"
    attention = "attention"


@expanded
def where(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A file or a URL.")],
    model: ModelId,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help='Texts to find, such as "a cat"; none with --method attention.'),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="dense: similarity of each place and the text. gradient: contribution of each place to the score of "
            "the whole image. rollout: attention of the model, for any text. windows: similarity of windows around "
            "each place, the best and slow. attention: that of --layers and --heads."
        ),
    ] = Method.dense,
    whole: Annotated[
        bool, typer.Option("--whole", help="Read the image to its edges, instead of the square in its middle.")
    ] = False,
    shifts: Annotated[
        int,
        typer.Option(min=1, help="Average over shifts in each direction: finer and slower.", rich_help_panel=ADVANCED),
    ] = 1,
    layers: Annotated[
        str,
        typer.Option(
            metavar="N,N", help="Layers for --method attention, from the end if negative.", rich_help_panel=ADVANCED
        ),
    ] = "-1",
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Heads for --method attention (default: the mean of all).", rich_help_panel=ADVANCED
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the image with each map over it. Needs matplotlib.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.npz", help="Save maps (texts, height, width).")
    ] = None,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Find rough boxes around the high regions of maps. Needs SciPy.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="With --boxes: the share of a map's highest value that a box reaches (default: 0.5).",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    as_json: AsJson = False,
    exif: ExifMode = ExifUse.ignore,
    *,
    loading: ExactLoading,
    allow_scheme: AllowScheme = None,
    force: Force = False,
) -> None:
    """Find where in an image each text is.

    Maps have the size of the image, with NaN outside the square that the model reads. Values are similarities minus
    those of texts that fit any place: above 0 the text fits better than those.

    Example: hf-clip where photo.jpg "a cat" "the sofa" --model clip-vit-base-patch16 --plot where.png
    """
    check_plot(plot, force)
    if output is not None:
        check_output(output, force, [".npz"])
    if (method == Method.attention) == bool(texts):
        raise CommandError(
            f"attention takes no texts, got {texts[0]!r}: choose another --method"
            if texts
            else "there are no texts: give some, or --method attention"
        )

    if threshold is not None and not boxes:
        raise CommandError(f"--threshold {threshold:g} applies to boxes alone: add --boxes, or leave it out")

    from ..data.images import ImageRef
    from ..localization import maps as localization

    picture = ImageRef.of(image, None, allow_scheme or ()).open(exif.value)
    check_source(model, "where", "model", "checkpoint")
    loaded, processor = common.load_model(model, loading)
    if method == Method.attention:
        titles, maps = attention(
            loaded, processor, picture, whole_numbers(layers), heads and whole_numbers(heads), whole
        )
    else:
        titles = texts or []
        maps = localization.where(loaded, processor, picture, titles, method.value, whole=whole, shifts=shifts)
    for title, map in zip(titles, maps, strict=True):
        found = peak_and_boxes(title, map, (0.5 if threshold is None else threshold) if boxes else None)
        say(json.dumps(found) if as_json else sentence(found))
    if output is not None:
        save_maps(titles, maps, output)
    if plot is not None:
        from ..plots.maps import draw_maps

        draw_maps(picture, titles, maps.numpy(), plot, method.value)
        say(f"drawn: {plot}", err=True)


def attention(model, processor, picture, layers: list[int], heads, whole: bool) -> tuple[list[str], "torch.Tensor"]:
    """Compute maps of attention; return their titles and the maps, one for each layer and head."""
    from ..localization.maps import attention_maps

    maps = attention_maps(model, processor, picture, layers, heads, whole=whole)
    named = [f"head {head}" for head in heads] if heads else ["all heads"]
    return [f"layer {layer}, {head}" for layer in layers for head in named], maps.flatten(0, 1)


def whole_numbers(argument: str) -> list[int]:
    """Parse whole numbers separated by commas."""
    try:
        return [int(part) for part in argument.split(",")]
    except ValueError:
        raise CommandError(f"{argument!r} is not a list of whole numbers: write 0,3 or -1") from None


def peak_and_boxes(text: str, map: "torch.Tensor", threshold: float | None) -> dict:
    """Return the highest value of a map and its place, and with a threshold the boxes."""
    from ..localization.boxes import find_boxes, find_peak

    x, y = find_peak(map)
    found = {"text": text, "score": float(map[y, x]), "x": x, "y": y}
    if threshold is None:
        return found
    return {**found, "boxes": find_boxes(map, threshold)}


def sentence(found: dict) -> str:
    """Return the line that is printed for a text."""
    line = f"{found['text']}: {found['score']:.3g} at x={found['x']}, y={found['y']}"
    boxes = [f"{box['box']} {box['score']:.3g}" for box in found.get("boxes", [])]
    return f"{line}; boxes: {', '.join(boxes) or 'none'}" if "boxes" in found else line


def save_maps(texts: list[str], maps: "torch.Tensor", output: Path) -> None:
    """Write texts and maps as .npz, which is read without pickle."""
    import numpy as np

    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as work, work.open("wb") as file:
        np.savez_compressed(file, texts=np.array(texts), maps=maps.numpy())
