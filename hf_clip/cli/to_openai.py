"""`hf-clip to-openai`."""

from pathlib import Path
from typing import Annotated

import typer

from ..utils.text import say
from .options import Force
from .sources import check_source


def to_openai(
    directory: Annotated[Path, typer.Argument(help="A converted folder, or a stock CLIP one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .pt file to write.")],
    force: Force = False,
) -> None:
    """Write a folder's weights as a state dict that the original's clip.load reads.

    Example: hf-clip to-openai clip-vit-base-patch32 --output ViT-B-32.pt
    """
    check_source(directory, "to-openai", "model")

    from ..openai import to_openai as engine

    engine.to_openai(directory, output, force, report=say)
    say(f'done: clip.load("{output}")')
