"""`hf-clip search` and `hf-clip duplicates`."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.files import check_output
from ..utils.text import say
from . import common
from .blocks import Loading
from .classify import check_plot
from .common import CommandError
from .options import ADVANCED, AllowScheme, AsJson, Device, Force, LeastLikeness, Precision, Trust
from .sources import check_source

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ..search.cutoff import Cutoff
    from ..search.duplicates import DuplicateGroup
    from ..search.index import ImageIndex

WEIGHT = re.compile(r"(.+)\^(-?\d+(?:\.\d+)?)", re.DOTALL)


IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="The directory that hf-clip index wrote.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a web page with thumbnails of the images.")]


def search(
    path: IndexPath,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="The query; several texts are added.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="An image to add to the query: a path or a URL. Repeatable.")
    ] = None,
    minus: Annotated[list[str] | None, typer.Option(help="A text to subtract from the query. Repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="The number of images to find.")] = 20,
    min_score: Annotated[
        float, typer.Option(min=-1.0, max=1.0, help="The least cosine; a text that fits has about 0.2 to 0.35.")
    ] = -1.0,
    cutoff: Annotated[
        str | None,
        typer.Option(
            metavar="auto|NUMBER",
            help="Keep the images that stand out from the others for this query, a heuristic; or the best ones among "
            "which NUMBER are expected by chance.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Search only rows that meet a condition on a column: 'year>=2020', 'year in 2020,2021', "
            "'caption is not null', 'tags has cat'. Repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
    html: Html = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the images. Needs matplotlib.")] = None,
    force: Force = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH|ID",
            help="The CLIP that made the index (default: the path or id that the index has).",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    allow_scheme: AllowScheme = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Find images by text, by image, or by a sum of both.

    A weight can follow a text or an image after ^, as in "a dog^2". A query of texts loads only the text tower, by
    default the copy that the index holds, whose scores are the model's up to 1e-6.

    Example: hf-clip search photos.index "a red car" --minus snow -k 5
    """
    if not (texts or image or minus):
        raise CommandError("the query is empty: write a text, or pass --image")
    check_source(path, "search", "index")
    check_plot(plot, force)
    check_html(html, force)

    from ..data.images import ImageRef
    from ..search.filters import parse_condition

    most_by_chance = None if cutoff is None else parse_cutoff(cutoff)
    schemes = allow_scheme or ()
    conditions = [parse_condition(condition) for condition in where or ()]
    index = open_index(path, model, device, trust_remote_code, text_only=not image)
    images = [(ImageRef.of(each, None, schemes), weight) for each, weight in weighted(image)]
    query: dict[str, Any] = {"text": weighted(texts), "image": images, "minus": weighted(minus)}
    hits = index.search(**query, k=k, where=conditions, min_score=min_score, cutoff=most_by_chance)
    for hit in hits:
        say(json.dumps(hit, default=str) if as_json else f"{hit['score']:.4f}  {hit['path']}")
    if cutoff is not None and hits:
        most = max(hit["chance"] for hit in hits)
        more = f", more may: pass a larger -k than {k}" if len(hits) == k else ""
        say(f"{len(hits):,} images stand out, about {most:.2g} of them by chance{more}", err=True)
    if not hits:
        say("no image meets the conditions" if cutoff is None else "no image stands out for this query", err=True)
        return
    captions = [(hit["path"], f"{hit['score']:.3f} {hit['path']}") for hit in hits]
    write_sheets(index.settings, captions, title(texts, image, minus), html, plot, schemes)


def duplicates(
    path: IndexPath,
    threshold: LeastLikeness = 0.98,
    as_json: AsJson = False,
    html: Html = None,
    force: Force = False,
    allow_scheme: AllowScheme = None,
) -> None:
    """List groups of images that are nearly the same, each with the one to keep first.

    The image to keep has the most pixels of its group; of equally large ones it is the oldest. Every other image of the
    group reaches the threshold with it. Links and hard links to one file count once. No model is loaded, and no file is
    deleted: look at --html before you delete any.

    Example: hf-clip duplicates photos.index --html duplicates.html
    """
    check_source(path, "search", "index")
    check_html(html, force)

    from ..search.duplicates import find_duplicates, preferred_order, read_file_facts
    from ..search.storage import image_source, open_index_files

    settings, rows, columns, graph, *_ = open_index_files(path)
    names = columns["path"].to_pylist()
    schemes = allow_scheme or ()
    facts = read_file_facts([image_source(settings, name, schemes) for name in names])
    order = preferred_order(facts)
    groups = find_duplicates(rows, threshold, graph, order)
    for group in groups:
        lines = [json.dumps(as_object(group, names, facts))] if as_json else lines_of_group(group, names, facts)
        for line in lines:
            say(line)
    count = sum(len(group.others) for group in groups)
    say(f"{count:,} of {len(order):,} images repeat one of {len(groups):,}", err=True)
    if linked := len(rows) - len(order):
        say(f"{linked:,} more names are links to a file that is listed already", err=True)
    if unread := sum(not each.pixels for each in facts):
        say(f"{unread:,} images cannot be opened: their sizes are unknown, so which to keep is not", err=True)
    if html is not None and groups:
        captions = []
        for group in groups:
            verdicts = ["keep", *(f"{score:.4f}" for score in group.scores)]
            for row, verdict in zip([group.keeper, *group.others], verdicts, strict=True):
                captions.append((names[row], f"{verdict} ({size(facts[row])}) {names[row]}"))
        heading = f"images nearly the same: cosine at least {threshold:g}"
        write_sheets(settings, captions, heading, html, None, schemes)


def check_html(output: Path | None, force: bool) -> None:
    """Raise CommandError or FileExistsError for a web page that cannot or may not be written."""
    if output is None:
        return
    check_output(output, force, [".htm", ".html"])
    if not output.absolute().parent.is_dir():
        raise CommandError(f"cannot write {output}: there is no folder {output.parent}")


def open_index(path: Path, model: str | None, device: str | None, trust: bool, text_only: bool) -> "ImageIndex":
    """Open an index with its model or, for queries of texts, with a text tower alone: the one that it holds, if any."""
    from ..search.index import ImageIndex
    from ..search.storage import TOWER_FILE, read_index_settings

    settings = read_index_settings(path)
    if text_only and model is None and device is None and TOWER_FILE in settings["files"]:
        return ImageIndex.load(path)
    name, loading = model or settings["model"], Loading(Precision(settings["dtype"]), device, trust_remote_code=trust)
    if text_only:
        return ImageIndex.load(path, *common.load_text_embedder(name, loading))
    return ImageIndex.load(path, *common.load_embedder(name, loading))


def weighted(items: list[str] | None) -> list[tuple[str, float]]:
    """Split each item into text or path and the weight after its ^, 1 without one."""
    pairs = []
    for item in items or ():
        found = WEIGHT.fullmatch(item)
        pairs.append((found[1], float(found[2])) if found else (item, 1.0))
    return pairs


def parse_cutoff(cutoff: str) -> "Cutoff":
    """Return "auto" or the number that a text is."""
    from ..search.cutoff import check_cutoff

    try:
        parsed: Any = float(cutoff)
    except ValueError:
        parsed = cutoff
    check_cutoff(parsed)
    return parsed


def title(texts: list[str] | None, images: list[str] | None, minus: list[str] | None) -> str:
    """Describe a query in one line."""
    return " ".join([" + ".join([*(texts or ()), *(images or ())]), *(f"- {text}" for text in minus or ())])


def size(facts: Any) -> str:
    """Return the size of an image in megapixels."""
    return f"{facts.pixels / 1e6:.1f} MP" if facts.pixels else "size unknown"


def as_object(group: "DuplicateGroup", names: list[str], facts: list[Any]) -> dict[str, Any]:
    """Return the JSON object of a group: path and pixels of the image to keep, and of the others with their cosines."""
    others = [
        {"path": names[row], "score": score, "pixels": facts[row].pixels}
        for row, score in zip(group.others, group.scores, strict=True)
    ]
    return {"path": names[group.keeper], "pixels": facts[group.keeper].pixels, "duplicates": others}


def lines_of_group(group: "DuplicateGroup", names: list[str], facts: list[Any]) -> list[str]:
    """Return the lines of a group: the image to keep, then the others with their cosines."""
    others = [
        f"    {score:.4f}  {names[row]}  ({size(facts[row])})"
        for row, score in zip(group.others, group.scores, strict=True)
    ]
    return [f"{names[group.keeper]}  (keep, {size(facts[group.keeper])})", *others]


def write_sheets(
    settings: "Mapping[str, Any]",
    images: list[tuple[str, str]],
    heading: str,
    html: Path | None,
    plot: Path | None,
    schemes: "Collection[str]" = (),
) -> None:
    """Write thumbnails of images, pairs of a path and a caption, as a web page and a figure, where asked for.

    Raises:
        CommandError: No image can be opened, as with the wrong folder.
    """
    if html is None and plot is None:
        return
    from ..plots.sheet import draw_sheet, write_sheet
    from ..search.storage import image_source

    sources = [(image_source(settings, name, schemes), caption) for name, caption in images]
    for output, write in ((html, write_sheet), (plot, draw_sheet)):
        if output is None:
            continue
        if not write(sources, heading, output, settings.get("exif", "ignore")):
            raise CommandError(
                f"none of the {len(images):,} images can be opened in {settings.get('folder') or os.curdir}: run "
                "hf-clip index again with --folder, the folder that their paths start from, or allow their kind of "
                "address with --allow-scheme"
            )
        say(f"drawn: {output}", err=True)
