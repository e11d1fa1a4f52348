"""`hf-clip search` and `hf-clip duplicates`."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.text import say
from . import common
from .classify import check_plot
from .common import CommandError
from .options import AsJson, Device, Precision, Trust

if TYPE_CHECKING:
    from ..search.index import ImageIndex

WEIGHT = re.compile(r"(.+)\^(-?\d+(?:\.\d+)?)", re.DOTALL)
IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="The directory that hf-clip index made.")]


def search(
    path: IndexPath,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="What to look for; several texts are added up.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="An image to add: a path or an address. May be given again.")
    ] = None,
    minus: Annotated[list[str] | None, typer.Option(help="A text to subtract. May be given again.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many images to find.")] = 20,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Find only rows such as 'year>=2020'. May be given again."),
    ] = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a web page with the images.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the images. Needs matplotlib.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="DIR|ID", help="The CLIP that made the index, if it has moved since."),
    ] = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Find images by texts, images, and sums of both.

    A weight may follow after ^, as in "a dog^2". Only texts: only the text tower is loaded.

    Example: hf-clip search photos.index "a red car" --minus snow -k 5
    """
    if not (texts or image or minus):
        raise CommandError("there is nothing to search for: give a text or --image")
    check_plot(plot)
    if html is not None and not html.absolute().parent.is_dir():
        raise CommandError(f"can't write {html}: there is no folder {html.parent}")

    from ..search.filters import parse_condition

    conditions = [parse_condition(condition) for condition in where or ()]
    index = open_index(path, model, device, trust_remote_code, text_only=not image)
    hits = index.search(weighted(texts), image=weighted(image), minus=weighted(minus), k=k, where=conditions)
    for hit in hits:
        say(json.dumps(hit, default=str) if as_json else f"{hit['score']:.4f}  {hit['path']}")
    if not hits:
        say("no image meets the conditions", err=True)
        return
    write_sheets(index, hits, title(texts, image, minus), html, plot)


def duplicates(
    path: IndexPath,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The least cosine of images that are nearly the same.")
    ] = 0.98,
    as_json: AsJson = False,
) -> None:
    """List groups of images that are nearly the same.

    All images of a group are that near to its first one, which is the first printed. No model is loaded.

    Example: hf-clip duplicates photos.index --threshold 0.98
    """
    from ..search.duplicates import find_duplicates
    from ..search.index import open_rows

    rows, columns, graph = open_rows(path)
    names = columns["path"]
    groups = find_duplicates(rows, threshold, graph)
    for group in groups:
        others = [
            {"path": names[row].as_py(), "score": score} for row, score in zip(group.others, group.scores, strict=True)
        ]
        if as_json:
            say(json.dumps({"path": names[group.first].as_py(), "duplicates": others}))
        else:
            say(names[group.first].as_py())
            for other in others:
                say(f"    {other['score']:.4f}  {other['path']}")
    count = sum(len(group.others) for group in groups)
    say(f"{count:,} of {len(rows):,} images repeat one of {len(groups):,}", err=True)


def open_index(path: Path, model: str | None, device: str | None, trust: bool, text_only: bool) -> "ImageIndex":
    """Open an index with its model, or only with the text tower."""
    from ..search.index import ImageIndex, read_index_settings

    settings = read_index_settings(path)
    name, precision = model or settings["model"], Precision(settings["dtype"])
    if text_only:
        return ImageIndex.load(path, *common.load_text_tower(name, precision, device, trust))
    return ImageIndex.load(path, *common.load(name, precision, device, False, trust))


def weighted(items: list[str] | None) -> list[tuple[str, float]]:
    """Split each item into what it is and the weight after its ^."""
    pairs = []
    for item in items or ():
        found = WEIGHT.fullmatch(item)
        pairs.append((found[1], float(found[2])) if found else (item, 1.0))
    return pairs


def title(texts: list[str] | None, images: list[str] | None, minus: list[str] | None) -> str:
    """Describe a query in one line."""
    return " ".join([" + ".join([*(texts or ()), *(images or ())]), *(f"- {text}" for text in minus or ())])


def write_sheets(
    index: "ImageIndex", hits: list[dict[str, Any]], heading: str, html: Path | None, plot: Path | None
) -> None:
    """Write what was found as a page and a picture, where asked for."""
    from ..plots.sheet import draw_sheet, write_sheet

    images = [(index.source_of(hit["path"]), f"{hit['score']:.3f} {hit['path']}") for hit in hits]
    for output, write in ((html, write_sheet), (plot, draw_sheet)):
        if output is not None:
            write(images, heading, output)
            say(f"drawn: {output}", err=True)
