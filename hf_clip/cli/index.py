"""`hf-clip index`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..utils.packages import require
from ..utils.text import say
from . import common
from .blocks import Loading
from .classify import read_lines
from .common import CommandError
from .options import ADVANCED, Device, Precision, RowType, Trust
from .sources import check_source


class IndexKind(str, Enum):
    """Ways in which an index finds the nearest rows."""

    exact = "exact"
    int8 = "int8"
    hnsw = "hnsw"


def index(
    embeddings: Annotated[
        str, typer.Argument(help="An output of hf-clip embed: a .safetensors, .npy or .parquet file, or a directory.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The directory of the index.")],
    kind: Annotated[
        IndexKind,
        typer.Option(
            help="exact compares every row; int8 compares 8-bit codes of every row, a quarter of the bytes, and hnsw "
            "searches a graph, for millions of images: both rank what they find by the rows."
        ),
    ] = IndexKind.exact,
    row_dtype: Annotated[
        RowType, typer.Option(help="The dtype of the stored rows; float16 halves them, scores change by about 1e-4.")
    ] = RowType.float32,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts to tune int8 and hnsw on, one per line (default: 240 common queries).",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    recall: Annotated[
        float,
        typer.Option(
            min=0.5, max=1.0, help="The share of the 10 nearest images that int8 and hnsw should find for a text."
        ),
    ] = 0.95,
    folder: Annotated[
        Path | None,
        typer.Option(help="The folder that relative paths start from (default: the folder that was embedded)."),
    ] = None,
    text_tower: Annotated[
        bool,
        typer.Option(
            help="Keep a copy of the text tower in the index, which answers texts within a second (ViT-B/32: 127 MB)."
        ),
    ] = True,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH|ID",
            help="The CLIP that made the embeddings (default: the path or id that they have).",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Build a search index of embeddings, or bring an index up to date.

    If the index exists, new embeddings are inserted, and those of changed and missing images are removed; if more than
    half would be removed, the index is built anew. The recall of int8 and hnsw is measured on texts, whose neighbors
    are harder to find than those of images.

    Example: hf-clip index features.safetensors --output photos.index
    """
    check_source(embeddings, "index", "embeddings")
    require("pyarrow", "search", "an index")
    if kind is not IndexKind.exact:
        require({IndexKind.int8: "numkong", IndexKind.hnsw: "usearch"}[kind], "search", f"--kind {kind.value}")
    if output.exists() and not (output / "settings.json").is_file() and (output.is_file() or any(output.iterdir())):
        raise CommandError(f"{output} exists and is not an index: choose another output")
    if queries is not None and not queries.is_file():
        raise CommandError(f"there is no file {queries}")
    texts = None if queries is None else read_lines(str(queries))

    from ..embedding.reading import open_embeddings
    from ..search.index import ImageIndex

    settings = open_embeddings(embeddings).settings
    loading = Loading(Precision(settings["dtype"]), device, trust_remote_code=trust_remote_code)
    loaded, processor = common.load_embedder(model or settings["model"], loading)
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
        text_tower=text_tower,
    )
    say(f"done: {output}, {len(made):,} images, {made.settings['inserted']:,} of them new")
    if kind is not IndexKind.exact:
        found, wanted = made.settings["recall"], made.settings["wanted"]
        say(
            f"recall of the 10 nearest: {found:.1%} on {made.settings['queries']:,} texts, "
            f"{made.settings['expansion']:,} candidates each"
        )
        if found < wanted:
            say(f"the wanted recall, {wanted:.1%}, is not reached: use --kind exact", err=True)
        query_ms, exact_ms = made.settings["query_ms"], made.settings["exact_ms"]
        if query_ms >= exact_ms:
            say(f"a query takes {query_ms:.1f} ms, {exact_ms:.1f} ms with every row: use --kind exact", err=True)
