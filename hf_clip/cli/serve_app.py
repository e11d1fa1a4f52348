"""`hf-clip app`."""

from pathlib import Path
from typing import Annotated

import typer

from ..utils.packages import require
from . import common
from .options import ComputeDType, Device, ModelId, Precision, Trust


def serve_app(
    model: ModelId,
    compare: Annotated[str | None, typer.Option(metavar="DIR|ID", help="A second model, for the tab Compare.")] = None,
    index: Annotated[
        Path | None, typer.Option(metavar="INDEX", help="What hf-clip index made with this model, for the tab Search.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in, all of them.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port (default: 7860, or the next free).")
    ] = None,
    dtype: ComputeDType = Precision.float32,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Try a model in the browser: label images, see where texts are, search, compare two models.

    Only this machine can open the page unless --host says otherwise.

    Example: hf-clip app --model clip-vit-base-patch32
    """
    require("gradio", "app", "the app")

    from ..app.page import build_page, display_name, launch_page
    from ..search.index import ImageIndex
    from ..search.storage import read_index_settings

    if index is not None:
        read_index_settings(index)  # before a model is loaded
    clip = common.load(model, dtype, device, False, trust_remote_code)
    other = common.load(compare, dtype, device, False, trust_remote_code) if compare else None
    images = None if index is None else ImageIndex.load(index, *clip)
    launch_page(build_page(clip, other, display_name(*clip), images), host, port)
