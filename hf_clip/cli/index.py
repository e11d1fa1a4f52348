"""`hf-clip index`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..utils.packages import require
from ..utils.text import say
from . import common
from .classify import read_lines
from .common import CommandError
from .options import Device, Precision, RowType, Trust


class IndexKind(str, Enum):
    """Name how an index finds the nearest rows."""

    exact = "exact"
    hnsw = "hnsw"


def index(
    embeddings: Annotated[
        str, typer.Argument(help="An output of hf-clip embed: a .safetensors, .npy or .parquet, or a directory.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The directory of the index.")],
    kind: Annotated[
        IndexKind, typer.Option(help="exact compares every row; hnsw (needs usearch) searches a graph, for millions.")
    ] = IndexKind.exact,
    row_dtype: Annotated[
        RowType, typer.Option(help="The dtype of stored rows; float16 halves them, scores change by about 1e-4.")
    ] = RowType.float32,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts, one a line, to tune hnsw on (default: common prompts)."),
    ] = None,
    recall: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="The share of the 10 nearest images that hnsw finds for a text.")
    ] = 0.95,
    folder: Annotated[
        Path | None, typer.Option(help="The folder that relative paths of images count from, for --html and --plot.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="DIR|ID", help="The CLIP that made them, if it has moved since."),
    ] = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Make an index of embeddings to search, or bring one up to date.

    Where the index exists already, only new embeddings are inserted, and those of images that are gone or have changed
    are removed; if that is more than half of them, it is built anew. The recall of hnsw is measured on texts: graphs of
    images are searched worse from there than from images.

    Example: hf-clip index features.safetensors --output photos.index
    """
    require("pyarrow", "search", "an index")
    if kind is IndexKind.hnsw:
        require("usearch", "search", "--kind hnsw")
    if output.exists() and not (output / "settings.json").is_file() and (output.is_file() or any(output.iterdir())):
        raise CommandError(f"{output} exists and is no index: choose another output")
    if queries is not None and not queries.is_file():
        raise CommandError(f"there is no file {queries}")
    texts = None if queries is None else read_lines(str(queries))

    from ..embedding.reading import open_embeddings
    from ..search.index import ImageIndex

    settings = open_embeddings(embeddings).settings
    precision = Precision(settings["dtype"])
    loaded, processor = common.load(model or settings["model"], precision, device, False, trust_remote_code)
    made = ImageIndex.build(
        embeddings,
        output,
        loaded,
        processor,
        kind=kind.value,
        dtype=row_dtype.value,
        queries=texts,
        recall=recall,
        folder=None if folder is None else folder.absolute(),
    )
    say(f"done: {output}, {len(made):,} images, {made.settings['inserted']:,} of them new")
    if kind is IndexKind.hnsw:
        found, wanted = made.settings["recall"], made.settings["wanted"]
        say(
            f"recall of the 10 nearest: {found:.1%} on {made.settings['queries']:,} texts, "
            f"{made.settings['expansion']:,} candidates each"
        )
        if found < wanted:
            say(f"the recall wanted, {wanted:.1%}, is not reached: use --kind exact for it", err=True)
