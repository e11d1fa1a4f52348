"""`hf-clip convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ..openai.published import CHECKPOINTS, DType, Layout
from ..utils.text import say
from .options import ADVANCED, LAYOUT_HELP, CacheDir, Force
from .sources import check_source


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(CHECKPOINTS)} (downloaded); a file: a TorchScript archive, a state dict of "
            "torch.save, or safetensors in the original's key layout; a folder of open_clip or timm; hf-hub:ORG/NAME."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    layout: Annotated[Layout, typer.Option(help=LAYOUT_HELP)] = Layout.hf_clip,
    dtype: Annotated[
        DType, typer.Option("--weight-dtype", help="The dtype to store weights in; `original` is lossless.")
    ] = DType.original,
    activation: Annotated[
        str | None,
        typer.Option(
            help="Activation, if the file does not record it: quick_gelu (default) or gelu.", rich_help_panel=ADVANCED
        ),
    ] = None,
    vision_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Attention heads of the image tower (default: width / 64).", rich_help_panel=ADVANCED),
    ] = None,
    text_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Attention heads of the text tower (default: width / 64).", rich_help_panel=ADVANCED),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="An open_clip architecture that has these settings, such as ViT-H-14.", rich_help_panel=ADVANCED
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Prefix of the keys of the CLIP to read, in a file that holds several.", rich_help_panel=ADVANCED
        ),
    ] = None,
    cache_dir: CacheDir = None,
    force: Force = False,
) -> None:
    """Convert an original checkpoint to a folder that from_pretrained reads.

    Example: hf-clip convert ViT-B/32 --output clip-vit-base-patch32
    """
    check_source(source, "convert", "checkpoint", "timm")

    from ..openai import convert as engine

    engine.convert(
        source,
        output,
        layout,
        dtype,
        force,
        cache_dir,
        report=say,
        activation=activation,
        vision_heads=vision_heads,
        text_heads=text_heads,
        like=like,
        prefix=prefix,
    )
    say(f'done: AutoModel.from_pretrained("{output}")')
