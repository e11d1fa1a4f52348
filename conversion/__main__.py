"""`python -m conversion`: original checkpoints to Hugging Face repositories, and back."""

from pathlib import Path
from typing import Annotated

import typer

from hf_clip.openai.checkpoints import CHECKPOINTS
from hf_clip.openai.errors import CheckpointError, DownloadError

from .convert import DType, Layout, convert
from .export import export

app = typer.Typer(
    help="Original CLIP checkpoints to Hugging Face repositories, and back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]


@app.command("convert", no_args_is_help=True)
def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(CHECKPOINTS)} (downloaded), or a file: a TorchScript archive, a state dict of "
            "torch.save, or safetensors in the original's key layout."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    layout: Annotated[
        Layout, typer.Option(help="`transformers` writes a ViT for the stock CLIPModel and CLIPProcessor.")
    ] = Layout.hf_clip,
    dtype: Annotated[
        DType, typer.Option(help="Store the weights in another dtype; `original` is lossless.")
    ] = DType.original,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where downloads are kept; $HF_CLIP_CACHE or ~/.cache/clip unless given.")
    ] = None,
    force: Force = False,
) -> None:
    """Write an original checkpoint as a folder that from_pretrained reads.

    Example: python -m conversion convert ViT-B/32 --output clip-vit-base-patch32
    """
    convert(source, output, layout, dtype, force, cache_dir, report=typer.echo)
    typer.echo(f'done: AutoModel.from_pretrained("{output}")')


@app.command("export", no_args_is_help=True)
def export_command(
    directory: Annotated[Path, typer.Argument(help="A converted folder, or a stock CLIP one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .pt file to write.")],
    force: Force = False,
) -> None:
    """Write a folder's weights as a state dict that the original's clip.load reads.

    Example: python -m conversion export clip-vit-base-patch32 --output ViT-B-32.pt
    """
    export(directory, output, force, report=typer.echo)
    typer.echo(f'done: clip.load("{output}")')


def main() -> None:
    try:
        app()
    except (CheckpointError, DownloadError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
