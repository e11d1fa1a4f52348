"""`hf-clip serve`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data.labels import saved_classifier
from ..utils.packages import require
from ..utils.text import say
from . import common
from .blocks import Loading, expanded
from .classify import read_labels, read_templates
from .common import CommandError
from .options import ADVANCED, ExifMode, ExifUse
from .sources import MODEL_KINDS, check_source

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@expanded
def serve(
    source: Annotated[
        str, typer.Argument(metavar="NAME|PATH|ID", help="The model: a name, a file, a folder, or a Hub id.")
    ],
    index: Annotated[
        Path | None,
        typer.Option(metavar="INDEX", help="An index that hf-clip index made with this model, for /search."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            "-l",
            metavar="A,B,C|FILE",
            help="Labels for requests to /classify that have none, with commas between, a file of one a line, or a "
            ".safetensors of calibrate or few-shot.",
        ),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--templates",
            "-t",
            metavar="TEXT|FILE",
            help="The sentence around a label, {} in its place, or a file of one a line (default: a photo of a {}.).",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 admits all other machines: pass --api-key with it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    max_batch: Annotated[int, typer.Option(min=1, help="The most images per pass through the model.")] = 32,
    max_wait_ms: Annotated[
        float,
        typer.Option(min=0, max=1000, help="How long a batch waits for other clients, while there are several."),
    ] = 5.0,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="HF_CLIP_API_KEY",
            help="The key that requests need; other users of this machine can see options, but not variables.",
        ),
    ] = None,
    allow_urls: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="A host that images may be downloaded from; *.example.com is all below it. Repeatable.",
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="A site whose pages may call the server, such as https://example.com. Repeatable."
        ),
    ] = None,
    max_waiting: Annotated[
        int,
        typer.Option(
            min=2048, help="Images and texts that may wait; more are refused with 429.", rich_help_panel=ADVANCED
        ),
    ] = 4096,
    max_seconds: Annotated[
        float, typer.Option(min=1, help="Seconds that a request may take.", rich_help_panel=ADVANCED)
    ] = 60.0,
    exif: ExifMode = ExifUse.ignore,
    *,
    loading: Loading,
) -> None:
    """Serve a model over HTTP: embeddings in OpenAI's form, labels, scores, search and maps.

    Only this machine can reach the server, unless --host is given. SIGTERM lets running requests end.

    Example: hf-clip serve ViT-B/32 --port 8080
    """
    require("fastapi", "serve", "the server")

    from ..serving.server import open_socket, serve_until_stopped
    from ..serving.service import ServerSettings

    check_source(source, "serve", *MODEL_KINDS)
    if index is not None:
        from ..search.storage import read_index_settings

        if read_index_settings(index).get("decode") == "draft":  # read before a model is loaded
            say(f"{index} was made with --decode draft: images of requests are decoded in full", err=True)
    saved = saved_classifier(labels or "")
    if saved is not None and templates:
        raise CommandError(f"{saved} has its own templates: leave --templates off")
    settings = ServerSettings(
        name=Path(source).resolve().name if os.path.exists(source) else source,
        index=None if index is None else str(index),
        labels=tuple(read_labels(labels)) if labels and saved is None else (),
        templates=tuple(read_templates(templates)) if templates else (),
        classifier=None if saved is None else str(saved),
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        api_key=api_key,
        allow_urls=tuple(allow_urls or ()),
        cors=tuple(cors or ()),
        exif=exif.value,
        max_waiting=max_waiting,
        max_seconds=max_seconds,
    )
    if templates and not settings.templates:
        raise CommandError("the templates are empty: write a sentence with {} for the label")

    def load() -> tuple[Any, Any]:
        return common.load_embedder(source, loading)

    with open_socket(host, port) as listener:
        address = f"http://{host}:{listener.getsockname()[1]}"
        if host not in LOOPBACK and api_key is None:
            say(f"{address} is open to all who reach it: --api-key asks for a key", err=True)
        serve_until_stopped(load, settings, listener, lambda: say(f"{settings.name} answers at {address}"))
