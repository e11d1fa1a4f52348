"""The part of `hf-clip embed` that writes a directory."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

from ..utils.text import say
from . import common
from .common import STOPPED, CommandError
from .options import Precision

if TYPE_CHECKING:
    from ..embedding.parts import PartStore, Shard
    from ..scale.report import Report
    from ..scale.run import Steps
    from ..scale.sources import Source

Clip = tuple[Any, Any]
Load = Callable[[], tuple[Clip, dict[str, Any]]]


@dataclass(frozen=True)
class Request:
    """What the options of `hf-clip embed` ask for, where the output is a directory."""

    source: str
    output: str
    model: str
    normalize: bool
    restart: bool
    batch_size: int
    workers: int | None
    dtype: Precision
    device: str | None
    optimize: bool
    trust_remote_code: bool
    strict: bool
    shard: str | None
    engine: str | None
    address: str | None
    row_dtype: str
    image_column: str | None
    key_column: str | None
    text_column: str | None
    retry_errors: bool
    part_rows: int
    layout: str | None


def parse_shard(text: str | None) -> "Shard":
    """Parse K/N."""
    from ..embedding.parts import WHOLE, Shard

    if text is None:
        return WHOLE
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise CommandError(f"--shard is {text!r}: write K/N, with K from 1 to N")
    return Shard(int(found[1]), int(found[2]))


def embed_parts(request: Request) -> None:
    """Embed a source into a directory of parts."""
    from tqdm import tqdm

    from ..embedding.identity import SAME_PRECISION
    from ..embedding.parts import WHOLE, PartStore
    from ..scale.sources import open_source

    shard = parse_shard(request.shard)
    if request.layout is not None and shard != WHOLE:
        raise CommandError(f"--layout {request.layout} wants all images: run it once more without --shard at the end")
    source = open_source(request.source, request.image_column, request.key_column, request.text_column)
    load = cache(lambda: load_with_settings(request, source.folder))
    settings = known_settings(request, source.folder) or load()[1]
    with PartStore(request.output, settings, SAME_PRECISION, request.restart, shard) as store:
        total = source.count if shard == WHOLE else None
        try:
            with tqdm(desc="images", total=total, unit="image") as bar:
                report = embed_with(request, source, store, load, bar)
        except KeyboardInterrupt:
            say(f"stopped: finished parts are kept in {store.place}; run the same command to go on", err=True)
            raise typer.Exit(STOPPED) from None
        finish(report, store, source)
    if request.layout is not None:
        from ..scale.layouts import write_clip_retrieval

        write_clip_retrieval(store.place, request.text_column)
        say(f"written: {store.place}/img_emb and metadata in the layout of clip-retrieval")


def known_settings(request: Request, folder: str | None) -> dict[str, Any] | None:
    """Return the settings of an output that the same files of a model have begun in the same way, else None."""
    from ..embedding.identity import fingerprint
    from ..embedding.parts import SETTINGS, read_settings
    from ..utils.places import place_at, reaching

    place = place_at(request.output)
    with reaching(place):
        if request.restart or not place.fs.exists((place / SETTINGS).path):
            return None
        settings = read_settings(place)
    wanted = {**plain_settings(request, folder), "files": fingerprint(request.model)}
    is_same = wanted["files"] is not None and all(settings.get(key) == value for key, value in wanted.items())
    return settings if is_same else None


def plain_settings(request: Request, folder: str | None) -> dict[str, Any]:
    """Return the settings that no model is needed for."""
    return {
        "dtype": request.dtype.value,
        "normalize": request.normalize,
        "row_dtype": request.row_dtype,
        "text_column": request.text_column,
        "folder": folder,
    }


def load_with_settings(request: Request, folder: str | None) -> tuple[Clip, dict[str, Any]]:
    """Load the model, and describe what it gives."""
    from ..embedding.identity import fingerprint, store_settings

    clip = common.load(request.model, request.dtype, request.device, request.optimize, request.trust_remote_code)
    settings = store_settings(*clip, request.dtype.value, request.normalize)
    return clip, {**settings, **plain_settings(request, folder), "files": fingerprint(request.model)}


def checked_clip(store: "PartStore", load: Load) -> Clip:
    """Load the model, and refuse another than the directory's."""
    from ..embedding.identity import SAME_PRECISION
    from ..embedding.store import check_settings

    clip, settings = load()
    check_settings(str(store.place), store.settings, settings, SAME_PRECISION)
    return clip


def embed_with(request: Request, source: "Source", store: "PartStore", load: Load, bar: Any) -> "Report":
    """Run the engine that the request names."""
    options: dict[str, Any] = {
        "strict": request.strict,
        "retry_errors": request.retry_errors,
        "part_rows": request.part_rows,
    }
    if request.engine == "ray":
        from ..scale.ray_engine import RayOptions, run_on_ray

        ray = RayOptions(
            model=request.model,
            batch_size=request.batch_size,
            normalize=request.normalize,
            device=request.device,
            dtype=request.dtype.value,
            optimize=request.optimize,
            trust_remote_code=request.trust_remote_code,
            text_column=request.text_column,
            address=request.address,
        )
        return run_on_ray(source, store, ray, lambda: checked_clip(store, load), bar, **options)
    from ..scale.run import run

    return run(source, store, lambda: steps(request, store, load), request.batch_size, bar, **options)


def steps(request: Request, store: "PartStore", load: Load) -> "Steps":
    """Load what batches go through on this machine."""
    from ..scale.callables import ImageEmbedder, ImagePreprocessor, TextEmbedder
    from ..scale.run import Steps

    clip, texts = checked_clip(store, load), None
    if request.text_column is not None:
        texts = TextEmbedder(clip, request.text_column, normalize=request.normalize)
    preprocess = ImagePreprocessor(clip[1], workers=request.workers)
    return Steps(preprocess, ImageEmbedder(clip, batch_size=request.batch_size, normalize=request.normalize), texts)


def finish(report: "Report", store: "PartStore", source: "Source") -> None:
    """Say what was done, and in one line what was skipped and why."""
    if skipped := report.skipped():
        say(f"skipped: {skipped}", err=True)
    if not report.embedded and not report.kept:
        if not store.shard.holds_all:
            say(f"done: {store.place}, no image of {source.name} is in this shard")
            return
        raise CommandError(f"no image of {source.name} could be embedded")
    dropped = f", {report.dropped:,} dropped" if report.dropped else ""
    say(
        f"done: {store.place}, {report.embedded:,} new embeddings of {store.settings['dim']} dimensions, "
        f"{report.kept:,} images of earlier runs{dropped}"
    )
    if report.broken:
        raise CommandError(f"{len(report.broken):,} files could not be read to their end: {report.broken[0]}")
