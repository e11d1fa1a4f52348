"""`hf-clip embed`."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.packages import require
from ..utils.text import say
from . import common
from .blocks import Loading
from .common import STOPPED, CommandError
from .options import (
    ADVANCED,
    AllowScheme,
    BatchSize,
    ComputeDType,
    Device,
    ExifMode,
    ExifUse,
    ModelId,
    Optimize,
    Precision,
    RowType,
    Strict,
    Trust,
    Workers,
)

if TYPE_CHECKING:
    from ..data.images import Exif
    from ..data.sources import ImageSource
    from ..embedding.engine import EmbedOptions, Executor, Pending
    from ..embedding.parts import Shard
    from ..embedding.report import Report
    from ..embedding.stores import EmbeddingStore

Clip = tuple[Any, Any]
Load = Callable[[], tuple[Clip, dict[str, Any]]]


class Decoding(str, Enum):
    """Ways of decoding JPEGs."""

    full = "full"
    draft = "draft"


class Engine(str, Enum):
    """Where an embedding job runs, if not in this process."""

    ray = "ray"


OnRay = Annotated[Engine | None, typer.Option(help="ray: embed on a Ray cluster, or a local one.")]


def embed(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images; subfolders are included, hidden files are not. Also a pattern such as "
            "'photos/*.jpg', tars, tables (parquet, csv, tsv, jsonl) or a .txt of paths, at paths or addresses such as s3://bucket/photos.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="A .safetensors, .npy or .parquet (needs pyarrow) to write, or a directory of parquet parts.",
        ),
    ],
    model: ModelId,
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Scale embeddings to length 1, or keep their lengths.")
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop the rows of an earlier run, and replace the output.")
    ] = False,
    batch_size: BatchSize = 32,
    dtype: ComputeDType = Precision.float32,
    device: Device = None,
    strict: Strict = False,
    text_column: Annotated[
        str | None, typer.Option(help="A column of captions to embed, too; in tars: text. Long ones are cut off.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Embed the Kth of N parts of the images; for array jobs.")
    ] = None,
    engine: OnRay = None,
    address: Annotated[
        str | None,
        typer.Option(rich_help_panel=ADVANCED, help="The address of the Ray cluster (default: a local one)."),
    ] = None,
    workers: Workers = None,
    optimize: Optimize = False,
    trust_remote_code: Trust = False,
    image_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=ADVANCED, help="The column of a parquet SOURCE with bytes, paths or addresses of images."
        ),
    ] = None,
    key_column: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=ADVANCED, help="The column of a parquet SOURCE that identifies an image (default: its row)."
        ),
    ] = None,
    exif: ExifMode = ExifUse.ignore,
    decode: Annotated[
        Decoding,
        typer.Option(
            rich_help_panel=ADVANCED,
            help="draft: decode large JPEGs at a fraction of their size, several times as fast and close to the "
            "original's pixels.",
        ),
    ] = Decoding.full,
    allow_scheme: AllowScheme = None,
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", rich_help_panel=ADVANCED, help="Try images again that failed in earlier runs."),
    ] = False,
    drop_errors: Annotated[
        bool,
        typer.Option(
            "--drop-errors",
            rich_help_panel=ADVANCED,
            help="Write no rows for images that cannot be read, whose embedding is NaN otherwise.",
        ),
    ] = False,
    row_dtype: Annotated[
        RowType | None,
        typer.Option(rich_help_panel=ADVANCED, help="The dtype of embeddings in parts (default: float32)."),
    ] = None,
    part_rows: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=ADVANCED, help="Rows of a part (default: 10,000).")
    ] = None,
    clip_retrieval: Annotated[
        bool,
        typer.Option(
            "--clip-retrieval",
            rich_help_panel=ADVANCED,
            help="Write the files that clip-retrieval and autofaiss read, too.",
        ),
    ] = False,
) -> None:
    """Write the embeddings of images to one file, or to a directory of parquet parts.

    Stop it at any time: the same command continues where it stopped. Once the output is finished, the same command
    embeds only new or changed images; for a file it finds them by OUTPUT.index.jsonl, which stays beside it.

    The embeddings are float32 (images, dimensions), sorted by path: `embeddings` in a .safetensors, with the paths as
    JSON in its metadata; the array of a .npy, with the paths in a .paths.txt; columns `path` and `embedding` in a
    .parquet.

    An output without a suffix is a directory, for any number of images: several shards may run at once, and an
    unreadable image is a row with an `error`.

    Example: hf-clip embed photos --output features.safetensors --model clip-vit-base-patch32
    """
    from ..data.sources import open_source
    from ..embedding.engine import EmbedOptions, Pending, embed_source
    from ..embedding.report import Report
    from ..embedding.stores import READING, is_directory

    into_parts = is_directory(output)
    for_parts: dict[str, Any] = {"shard": shard, "engine": engine, "text-column": text_column, "row-dtype": row_dtype}
    for_parts |= {
        "part-rows": part_rows,
        "retry-errors": retry_errors,
        "drop-errors": drop_errors,
        "clip-retrieval": clip_retrieval,
    }
    if not into_parts and (wrong := [name for name, value in for_parts.items() if value not in (None, False)]):
        raise CommandError(f"--{wrong[0]} wants a directory as --output: {output} is one file")
    if address is not None and engine is None:
        raise CommandError(f"--address {address} wants --engine ray: without it, this process embeds")
    if clip_retrieval and shard is not None:
        raise CommandError("--clip-retrieval wants all images: run it once more without --shard at the end")
    part = parse_shard(shard)
    if dtype is Precision.fastest:  # what it stands for here is recorded with the embeddings
        dtype, _ = common.settled(dtype, device)
    options = EmbedOptions(
        model,
        batch_size,
        workers,
        normalize,
        device,
        dtype.value,
        optimize,
        trust_remote_code,
        text_column,
        exif.value,
        decode.value,
    )
    if not into_parts:
        check_single_file(output)
    images = open_source(source, image_column, key_column, text_column, allow_scheme or ())
    plain = {"dtype": dtype.value, "normalize": normalize, "folder": images.folder}
    reading = {"exif": exif.value, "decode": decode.value}
    plain |= {key: value for key, value in reading.items() if value != READING[key]}
    if into_parts:
        plain |= {"row_dtype": (row_dtype or RowType.float32).value, "text_column": text_column}
    load = cache(lambda: load_with_settings(options, dtype, plain))
    settings = None if restart else known_settings(output, model, plain)
    with open_store(output, settings or load()[1], restart, part, part_rows, images, drop_errors) as store:
        report = Report()
        pending = Pending(images, store, retry_errors)
        if 0 < pending.known < (images.count or 0):
            say(f"going on: {pending.known:,} of {images.count:,} images are embedded already", err=True)
        executor = executor_of(engine, pending, options, lambda: checked_clip(store, load), address, strict)
        try:
            embed_source(pending, executor, strict=strict, report=report)
        except KeyboardInterrupt:
            tell_how_to_go_on(report, store, images, restart)
            raise typer.Exit(STOPPED) from None
        tell_outcome(report, store, images)
    if clip_retrieval:
        from ..embedding.layouts import write_clip_retrieval
        from ..utils.places import place_at

        write_clip_retrieval(place_at(output), text_column)
        say(f"written: {output}/img_emb and metadata in the layout of clip-retrieval")


def parse_shard(text: str | None) -> "Shard":
    """Parse K/N."""
    from ..embedding.parts import WHOLE, Shard

    if text is None:
        return WHOLE
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise CommandError(f"--shard is {text!r}: write K/N, with K from 1 to N")
    return Shard(int(found[1]), int(found[2]))


def check_single_file(output: str) -> None:
    """Refuse a file that cannot be written, before any work."""
    from ..embedding.files import check_file

    check_file(Path(output))
    if output.endswith(".parquet"):
        require("pyarrow", "parquet", output)


def open_store(
    output: str,
    settings: dict[str, Any],
    restart: bool,
    shard: "Shard",
    part_rows: int | None,
    images: "ImageSource",
    drop_errors: bool,
) -> "AbstractContextManager[EmbeddingStore]":
    """Open the file or the directory that embeddings go to."""
    from ..embedding.identity import SAME_PRECISION
    from ..embedding.stores import is_directory

    if is_directory(output):
        from ..embedding.parts import PART_ROWS, PartStore

        return PartStore(
            output, settings, SAME_PRECISION, restart, shard, part_rows or PART_ROWS, images.columns, drop_errors
        )
    from ..embedding.files import FileStore, check_header

    if images.listed:
        check_header(Path(output), [image.name for image, _ in images.images(print)])
    return FileStore(Path(output), settings, SAME_PRECISION, restart)


def known_settings(output: str, model: str, plain: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings of an output that the same files of a model have begun in the same way, else None."""
    from ..embedding.identity import fingerprint
    from ..embedding.reading import settings_at
    from ..embedding.stores import READING

    settings = settings_at(output)
    if settings is None:
        return None
    wanted = {**plain, "files": fingerprint(model)}
    if settings.get("folder") is None:  # version 0.2 knew no folder at an address
        wanted.pop("folder")
    for key in READING:
        wanted.setdefault(key, None)
    is_same = wanted["files"] is not None and all(settings.get(key) == value for key, value in wanted.items())
    return settings if is_same else None


def load_with_settings(options: "EmbedOptions", dtype: Precision, plain: dict[str, Any]) -> tuple[Clip, dict[str, Any]]:
    """Load the model, and describe its embeddings."""
    from ..embedding.identity import fingerprint, store_settings

    loading = Loading(dtype, options.device, options.optimize, options.trust_remote_code)
    clip = common.load_embedder(options.model, loading)
    settings = store_settings(*clip, options.dtype, options.normalize)
    return clip, {**settings, **plain, "files": fingerprint(options.model)}


def checked_clip(store: "EmbeddingStore", load: Load) -> Clip:
    """Load the model, and refuse another than the output's."""
    from ..embedding.identity import SAME_PRECISION
    from ..embedding.stores import check_settings

    clip, settings = load()
    check_settings(store.name, store.settings, settings, SAME_PRECISION)
    return clip


def executor_of(
    engine: Engine | None,
    pending: "Pending",
    options: "EmbedOptions",
    load: Callable[[], Clip],
    address: str | None,
    strict: bool,
) -> "Executor":
    """Choose the executor: this process or Ray."""
    if engine is Engine.ray:
        from ..embedding.parts import PartStore
        from ..embedding.ray_engine import run_on_ray

        assert isinstance(pending.store, PartStore)

        return partial(run_on_ray, store=pending.store, options=options, check=load, address=address)
    from ..embedding.engine import run_here

    if pending.store.keeps_order:  # one file, which holds no rows of failed images: they are listed at once
        return partial(run_here, options=options, load=load, strict=strict, on_error=common.tell_skipped)
    return partial(run_here, options=options, load=load, strict=strict, fill=True)


def tell_how_to_go_on(report: "Report", store: "EmbeddingStore", images: "ImageSource", restart: bool) -> None:
    """Report a run that was stopped."""
    kept = report.embedded + report.kept
    of = f" of {images.count:,}" if images.count is not None and store.holds_all else ""
    where = f"kept in {store.unfinished}" if kept else "finished"
    again = " without --restart" if restart and kept else ""
    say(f"stopped: {kept:,}{of} images are {where}; run the same command{again} to go on", err=True)


def tell_surprises(report: "Report", exif: "Exif") -> None:
    """Count the images that the model saw in another way than people do."""
    from ..data.images import surprises

    for sentence in surprises(report.count - report.kept, report.rotated, report.sixteen_bits, exif):
        say(sentence, err=True)


def tell_outcome(report: "Report", store: "EmbeddingStore", images: "ImageSource") -> None:
    """Report the counts of the run and, in one line, the skipped images by reason."""
    skipped = report.skipped()
    if not report.embedded and not report.kept:
        if not store.holds_all and not skipped:
            say(f"done: {store.name}, no image of {images.name} is in this shard")
            return
        raise CommandError(f"no image of {images.name} could be embedded: {skipped or 'it has none'}")
    if skipped:
        say(f"skipped: {skipped}", err=True)
    if images.unread:
        say(f"skipped: {images.unread}", err=True)
    tell_surprises(report, store.settings.get("exif", "ignore"))
    dropped = f", {report.dropped:,} dropped" if report.dropped else ""
    say(
        f"done: {store.name}, {report.embedded:,} new embeddings of {store.settings['dim']} dimensions, "
        f"{report.kept:,} images of earlier runs{dropped}"
    )
    if report.broken:
        raise CommandError(f"{len(report.broken):,} files could not be read to their end: {report.broken[0]}")
