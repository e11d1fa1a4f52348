"""`hf-clip app`."""

from pathlib import Path
from typing import Annotated

import typer

from ..utils.packages import require
from . import common
from .blocks import ExactLoading, expanded
from .common import CommandError
from .options import AllowScheme, ExifMode, ExifUse, ModelId


@expanded
def serve_app(
    model: ModelId,
    compare: Annotated[
        str | None, typer.Option(metavar="NAME|PATH|ID", help="A second model, for the tab Compare.")
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="INDEX", help="An index that hf-clip index made with this model, for the tab Search."),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A .safetensors that hf-clip calibrate wrote, for the tab Decide."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 admits all other machines: pass --auth with it.")
    ] = "127.0.0.1",
    auth: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with lines NAME:PASSWORD; the page asks for one of them."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port (default: 7860, or the next free).")
    ] = None,
    exif: ExifMode = ExifUse.apply,
    *,
    loading: ExactLoading,
    allow_scheme: AllowScheme = None,
) -> None:
    """Serve a page that tries a model: label images, find texts in them, search, compare two models.

    Only this machine can open the page, unless --host is given.

    Example: hf-clip app --model clip-vit-base-patch32
    """
    require("gradio", "app", "the app")

    from ..app.page import build_page, display_name, launch_page
    from ..search.index import ImageIndex
    from ..search.storage import read_index_settings
    from ..zero_shot.classifier import ZeroShotClassifier

    if index is not None:
        read_index_settings(index)  # before a model is loaded
    users = None if auth is None else read_users(auth)
    clip = common.load_model(model, loading)
    other = common.load_model(compare, loading) if compare else None
    images = None if index is None else ImageIndex.load(index, *clip, allow_schemes=allow_scheme or ())
    saved = None if classifier is None else ZeroShotClassifier.load(classifier, *clip)
    page = build_page(clip, other, display_name(*clip), images, saved, exif.value)
    launch_page(page, host, port, users)


def read_users(file: Path) -> list[tuple[str, str]]:
    """Read lines NAME:PASSWORD.

    Raises:
        CommandError: The file cannot be read, or a line has no colon.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {file}: {common.first_line(error)}") from error
    users = [(name, password) for name, colon, password in (line.partition(":") for line in lines) if colon]
    if not users or len(users) < len(lines):
        raise CommandError(f"{file} has a line without a colon, or none: write NAME:PASSWORD, one per line")
    return users
