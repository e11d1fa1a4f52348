"""`hf-clip to-openai`."""

from pathlib import Path
from typing import Annotated

import typer

from ..openai.published import CheckpointLayout
from ..utils.text import say
from .options import LAYOUT_HELP, Force
from .sources import check_source

# how each program loads the output
LOADS = {
    CheckpointLayout.openai: 'clip.load("{output}")',
    CheckpointLayout.open_clip: 'open_clip.create_model_and_transforms("local-dir:{output}")',
    CheckpointLayout.timm: 'timm.create_model("local-dir:{output}", pretrained=True)',
    CheckpointLayout.comfyui: "put {output} into ComfyUI/models/text_encoders",
}


def to_openai(
    directory: Annotated[Path, typer.Argument(help="A converted folder, or a stock CLIP one.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The .pt file to write; a folder for open_clip and timm; .safetensors for comfyui."
        ),
    ],
    layout: Annotated[CheckpointLayout, typer.Option(help=LAYOUT_HELP)] = CheckpointLayout.openai,
    force: Force = False,
) -> None:
    """Write the weights of a folder in the layout of the original's clip.load, of open_clip, timm or ComfyUI.

    Example: hf-clip to-openai clip-vit-base-patch32 --output ViT-B-32.pt
    """
    check_source(directory, "to-openai", "model")

    from ..openai import to_openai as engine

    engine.to_openai(directory, output, layout, force, report=say)
    say(f"done: {LOADS[layout].format(output=output)}")
