"""`hf-clip filter` and `hf-clip dedup`."""

from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.text import say
from .blocks import ExactLoading, Reading, expanded
from .common import CommandError
from .embed import OnRay, embed, parse_shard
from .options import ADVANCED, AllowScheme, LeastLikeness
from .sources import check_source

OutputDirectory = Annotated[
    str,
    typer.Option("--output", "-o", metavar="DIR", help="The directory of parquet parts to write, with the rows kept."),
]
OfImages = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="NAME|PATH|ID", help="The CLIP that embeds images, where they are not embedded yet."
    ),
]
EmbeddingsTo = Annotated[
    str | None,
    typer.Option(
        "--embeddings",
        metavar="DIR",
        help="Where to keep their embeddings (default: OUTPUT-embeddings).",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Making:
    """Options of a selection, and of embedding its images first."""

    engine: OnRay = None
    restart: Annotated[bool, typer.Option("--restart", help="Replace another selection in the output.")] = False
    reading: Reading
    loading: ExactLoading
    allow_scheme: AllowScheme = None

    def embed(self, source: str, place: str, model: str, text_column: str | None) -> None:
        """Embed images into a directory, or the rest of them."""
        options: dict[str, Any] = asdict(self.reading) | asdict(self.loading) | {"allow_scheme": self.allow_scheme}
        embed(source, place, model, text_column=text_column, engine=self.engine, **options)


class First(str, Enum):
    """Orders in which the duplicates of a cluster are kept."""

    far = "far"
    near = "near"


@expanded
def filter_by_score(
    pairs: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS",
            help="Images with captions: tars, or tables in parquet, csv or jsonl; or a directory that hf-clip embed "
            "--text-column wrote.",
        ),
    ],
    output: OutputDirectory,
    min_score: Annotated[
        float | None,
        typer.Option(min=-1.0, max=1.0, help="The least cosine; a text that fits has about 0.2 to 0.35."),
    ] = None,
    top: Annotated[
        float | None, typer.Option(metavar="FRACTION", help="The fraction of all pairs to keep, such as 0.3.")
    ] = None,
    model: OfImages = None,
    text_column: Annotated[str, typer.Option(help="The column of captions; in tars: text.")] = "text",
    embeddings: EmbeddingsTo = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Write the Kth of N parts of the output; for array jobs.")
    ] = None,
    *,
    making: Making,
) -> None:
    """Keep the image-text pairs whose CLIP score is high enough, as DataComp does.

    The score is the cosine of the two embeddings, and a column clip_score of the output. --top keeps what reaches the
    score at place int(N * FRACTION). Pairs that cannot be read or have no caption are left out. Stop it at any time:
    the same command goes on.

    Example: hf-clip filter pairs.parquet --top 0.3 --model clip-vit-large-patch14 --output kept
    """
    from ..curation.clip_score import check_limits, filter_pairs

    check_limits(min_score, top)
    part = parse_shard(shard)
    source = embedded(pairs, output, model, embeddings, making, text_column)
    found = filter_pairs(source, output, min_score=min_score, top=top, shard=part, restart=making.restart)
    if found.without_text:
        say(f"left out: {found.without_text:,} images without a caption", err=True)
    say(
        f"done: {output}, {found.selection.kept:,} of {found.selection.rows:,} pairs have a CLIP score of at least "
        f"{found.threshold:.6g}"
    )


@expanded
def dedup(
    images: Annotated[
        str,
        typer.Argument(metavar="IMAGES", help="Images, as hf-clip embed takes them; or a directory that it wrote."),
    ],
    output: OutputDirectory,
    threshold: LeastLikeness = 0.98,
    clusters: Annotated[
        int | None,
        typer.Option(min=1, help="Clusters that are compared each by itself; 1 compares all pairs (default: by size)."),
    ] = None,
    keep: Annotated[
        First,
        typer.Option(help="Keep the duplicate far from its cluster's center, as the paper does, or near to it."),
    ] = First.far,
    seed: Annotated[int, typer.Option(help="Seed of the clusters.", rich_help_panel=ADVANCED)] = 0,
    model: OfImages = None,
    embeddings: EmbeddingsTo = None,
    *,
    making: Making,
) -> None:
    """Keep the images that are no near-duplicates of another, by SemDeDup's rule.

    Images are clustered; in each cluster an image is dropped if its cosine with one before it reaches the threshold,
    the paper's 1 - epsilon. hf-clip duplicates lists groups to look at instead, and drops nothing.

    Example: hf-clip dedup photos --model clip-vit-base-patch32 --output kept --threshold 0.95
    """
    from ..curation.dedup import check_threshold, drop_duplicates

    check_threshold(threshold)
    source = embedded(images, output, model, embeddings, making)
    found = drop_duplicates(
        source, output, threshold, clusters=clusters, keep=keep.value, seed=seed, restart=making.restart
    )
    say(f"done: {output}, {found.kept:,} of {found.rows:,} images are no near-duplicates of another")


def embedded(
    source: str, output: str, model: str | None, embeddings: str | None, making: Making, text_column: str | None = None
) -> str:
    """Return the directory of embeddings that `source` is, or embed its images into one first, or the rest of them."""
    check_source(source, "filter", "embeddings")
    from ..embedding.reading import settings_at
    from ..embedding.stores import is_directory

    if is_directory(source) and settings_at(source) is not None:
        if model is not None:
            raise CommandError(f"{source} has embeddings already: leave out --model, or give the images themselves")
        return source
    if Path(f"{source}.index.jsonl").is_file():
        raise CommandError(f"{source} is one file of embeddings: embed the images again, into a directory")
    if model is None:
        raise CommandError(f"{source} has no embeddings: give the --model that embeds its images")
    place = embeddings or f"{output.rstrip('/')}-embeddings"
    making.embed(source, place, model, text_column)
    return place
