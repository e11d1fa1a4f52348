"""`hf-clip embed`."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..utils.packages import require
from ..utils.text import say
from . import common
from .common import STOPPED, CommandError
from .options import BatchSize, ComputeDType, Device, ModelId, Optimize, Precision, RowType, Strict, Trust, Workers
from .parts import Request, embed_parts

if TYPE_CHECKING:
    from ..embedding.store import FeatureStore, Record


class Engine(str, Enum):
    """Name what runs an embedding job."""

    ray = "ray"


class Layout(str, Enum):
    """Name the files that are written beside parts."""

    clip_retrieval = "clip-retrieval"


def embed(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images; subfolders are included, hidden files are not. Into a directory also: a pattern "
            "such as 'photos/*.jpg', tars, parquet files, at paths or addresses such as s3://bucket/photos.",
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
    workers: Workers = None,
    dtype: ComputeDType = Precision.float32,
    device: Device = None,
    optimize: Optimize = False,
    trust_remote_code: Trust = False,
    strict: Strict = False,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Embed the Kth of N parts of the images; for array jobs.")
    ] = None,
    engine: Annotated[Engine | None, typer.Option(help="ray: embed on a Ray cluster, or a local one.")] = None,
    address: Annotated[str | None, typer.Option(help="The address of the Ray cluster (default: a local one).")] = None,
    row_dtype: Annotated[RowType, typer.Option(help="The dtype of embeddings in parts.")] = RowType.float32,
    image_column: Annotated[
        str | None, typer.Option(help="The column of a parquet SOURCE with bytes, paths or addresses of images.")
    ] = None,
    key_column: Annotated[
        str | None, typer.Option(help="The column of a parquet SOURCE that identifies an image (default: its row).")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="A column of captions to embed, too; in tars: text. Long ones are cut off.")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try images again that failed in an earlier run.")
    ] = False,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of a part.")] = 10_000,
    layout: Annotated[
        Layout | None, typer.Option(help="Write the files that clip-retrieval and autofaiss read, too.")
    ] = None,
) -> None:
    """Write the embeddings of images to one file, sorted by path, or to a directory of parquet parts.

    Stop it at any time: the same command continues where it stopped. Once the output is finished, the same command
    embeds only new or changed images; it finds them by OUTPUT.index.jsonl, which stays beside the output.

    The embeddings are float32 (images, dimensions): `embeddings` in a .safetensors, with the paths as JSON in its
    metadata; the array of a .npy, with the paths in a .paths.txt; columns `path` and `embedding` in a .parquet.

    An output without a suffix is a directory, for any number of images: a run embeds what its finished parts do not
    hold, several shards may run at once, and an unreadable image is a row with an `error`.

    Example: hf-clip embed photos --output features.safetensors --model clip-vit-base-patch32
    """
    request = Request(
        source=source,
        output=output,
        model=model,
        normalize=normalize,
        restart=restart,
        batch_size=batch_size,
        workers=workers,
        dtype=dtype,
        device=device,
        optimize=optimize,
        trust_remote_code=trust_remote_code,
        strict=strict,
        shard=shard,
        engine=None if engine is None else engine.value,
        address=address,
        row_dtype=row_dtype.value,
        image_column=image_column,
        key_column=key_column,
        text_column=text_column,
        retry_errors=retry_errors,
        part_rows=part_rows,
        layout=None if layout is None else layout.value,
    )
    if is_directory(output):
        embed_parts(request)
    else:
        embed_file(request)


def is_directory(output: str) -> bool:
    """Return True if an output is a directory of parts: an address, a directory, or a name without a suffix."""
    from ..embedding.store import FORMATS

    path = Path(output)
    return "://" in output or (path.suffix not in FORMATS and (path.is_dir() or not path.suffix))


def embed_file(request: Request) -> None:
    """Write the embeddings of all images of a folder to one file."""
    only_parts = ("shard", "engine", "address", "image_column", "key_column", "text_column", "layout")
    if given := [name for name in only_parts if getattr(request, name) is not None]:
        option = given[0].replace("_", "-")
        raise CommandError(f"--{option} wants a directory as --output: {request.output} is one file")
    folder, output = Path(request.source), Path(request.output)
    if not folder.is_dir():
        raise CommandError(f"there is no folder {folder}")
    if output.suffix == ".parquet":
        require("pyarrow", "parquet", output.name)

    from tqdm import tqdm

    from ..embedding.identity import SAME_PRECISION, store_settings
    from ..embedding.images import iter_image_embeds
    from ..embedding.store import FeatureStore, check_output, scan

    images = scan(folder)
    if not images:
        raise CommandError(f"there are no images in {folder}")
    check_output(output, [record.path for record in images])
    clip = (request.model, request.dtype, request.device, request.optimize, request.trust_remote_code)
    loaded, processor = common.load(*clip)
    settings = store_settings(loaded, processor, request.dtype.value, request.normalize)
    skipped = common.Skipped()
    with FeatureStore(output, settings, SAME_PRECISION, request.restart) as store:
        pending = [record for record in images if record not in store]
        kept = len(images) - len(pending)
        if kept and pending:
            say(f"going on: {kept:,} of {len(images):,} images are embedded already", err=True)
        by_path = {images[record]: record for record in pending}
        batches = iter_image_embeds(
            loaded,
            processor,
            list(by_path),
            batch_size=request.batch_size,
            workers=request.workers,
            normalize=request.normalize,
            on_error=None if request.strict else skipped.add,
        )
        try:
            with tqdm(desc="images", total=len(images), initial=kept, unit="image") as bar:
                for paths, embeds in batches:
                    store.append([by_path[path] for path in paths], embeds.numpy())
                    kept += len(paths)
                    bar.update(len(paths))
            skipped.summarize(kept)
            finish(store, [record for record in images if record in store])
        except KeyboardInterrupt:
            kept = sum(record in store for record in images)
            where = f"kept in {store.partial}" if kept else "finished"
            again = " without --restart" if request.restart and kept else ""
            say(
                f"stopped: {kept:,} of {len(images):,} images are {where}; run the same command{again} to go on",
                err=True,
            )
            raise typer.Exit(STOPPED) from None


def finish(store: "FeatureStore", records: Sequence["Record"]) -> None:
    """Write the output unless it holds just `records` already, and say so."""
    if store.holds(records):
        say(f"{store.output} is complete: {len(records):,} images, none of them new")
    else:
        store.finish(records)
        say(f"done: {store.output}, {len(records):,} embeddings of {store.settings['dim']} dimensions")
