"""`hf-clip suspects`."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ..utils.files import check_output
from ..utils.packages import require
from ..utils.text import say
from . import common
from .blocks import Loading, Reading, expanded
from .classify import read_templates
from .common import CommandError
from .options import AllowScheme, AsJson, Force, LeastLikeness, ModelId, Store, Templates
from .search import Html, check_html

SHOWN = 100
MEANINGS = {
    "label": "labels are probably wrong",
    "conflict": "images are nearly the same as one of another label",
    "split": "images are nearly the same as one of another data set",
    "outlier": "images are unlike all others",
}


@expanded
def suspects(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...", help="Images with labels, as for evaluate; several are splits of one data set."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The .csv to write.")],
    model: ModelId,
    html: Html = None,
    threshold: LeastLikeness = 0.98,
    templates: Templates = None,
    as_json: AsJson = False,
    store: Store = None,
    force: Force = False,
    *,
    reading: Reading,
    loading: Loading,
    allow_scheme: AllowScheme = None,
) -> None:
    """List images to look at again: probably wrong labels, near-duplicates across splits, images that fit no class.

    Labels are judged by heads that were fitted to other images, with confident learning's rule. Nothing is changed: the
    csv has a row for each suspect, the surest of its kind first, and the page shows them.

    Example: hf-clip suspects photos/train photos/test --model clip-vit-base-patch32 --output suspects.csv
    """
    require("sklearn", "eval", "suspects")
    check_output(output, force, [".csv"])
    check_html(html, force)
    texts = None if templates is None else read_templates(templates)
    from ..curation.suspects import find_suspects, sheet_images, write_suspects
    from ..evaluation.tasks import to_rows
    from ..plots.sheet import write_sheet

    rows = [to_rows(each, allow_schemes=allow_scheme or ()) for each in data]
    loaded, processor = common.load_model(model, loading)
    found = find_suspects(
        loaded,
        processor,
        rows,
        threshold=threshold,
        templates=texts,
        store=store,
        report=lambda line: say(line, err=True),
        **reading.options,
    )
    write_suspects(found, output)
    counts = Counter(suspect.kind for suspect in found)
    if as_json:
        for suspect in found:
            say(json.dumps(suspect.to_json(), ensure_ascii=False))
    images = sum(map(len, rows))
    for kind, meaning in MEANINGS.items():
        say(f"{counts[kind]:,} of {images:,} {meaning}", err=as_json)
    if html is not None and found:
        if not write_sheet(sheet_images(found, SHOWN), f"suspects among {images:,} images", html, reading.exif.value):
            raise CommandError("no suspect can be opened any more: run the command again")
        more = any(count > SHOWN for count in counts.values())
        say(f"drawn: {html}" + (f", the first {SHOWN} of each kind" if more else ""), err=True)
    say(f"written: {output}", err=True)
