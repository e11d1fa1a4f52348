"""`python -m conversion`: original checkpoints to Hugging Face repositories, and back."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hf_clip.openai.checkpoints import CHECKPOINTS
from hf_clip.openai.errors import CheckpointError, DownloadError

from .convert import DType, Layout, convert
from .export import export
from .publish import PublishError, prepare, prepare_all, publish
from .verify import Verdict, table, verify

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


@app.command("verify", no_args_is_help=True)
def verify_command(
    directory: Annotated[Path, typer.Argument(help="A converted folder.")],
    original: Annotated[
        str | None,
        typer.Option(
            help="What it was converted from: one of the nine names (downloaded if need be), or a file. Without it, "
            "the folder is compared with what its parity.json recorded."
        ),
    ] = None,
    trust_original: Annotated[
        bool, typer.Option("--trust-original", help="Run the code in an original that is none of the published files.")
    ] = False,
    golden_images: Annotated[
        Path | None, typer.Option(help="A folder with the images of published examples, instead of the web.")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where downloads are kept; $HF_CLIP_CACHE or ~/.cache/clip unless given.")
    ] = None,
) -> None:
    """Prove that a folder is its original: config, tensors, pixels, token ids, features, logits.

    Writes parity.json into the folder, and the summary into its model card. Exits with 1 if anything differs.

    Example: python -m conversion verify clip-vit-base-patch32 --original ViT-B/32
    """
    checks = verify(directory, original, trust_original, golden_images, cache_dir, report=typer.echo)
    Console().print(table(checks))
    if any(row.verdict is Verdict.failed for row in checks):
        raise typer.Exit(1)


@app.command("publish", no_args_is_help=True)
def publish_command(
    directory: Annotated[Path | None, typer.Argument(help="A folder that `verify` has passed.")] = None,
    repo: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="The repository; created if need be.")] = None,
    organization: Annotated[
        str | None, typer.Option("--all", metavar="ORG", help="Publish all nine, under the names of their folders.")
    ] = None,
    root: Annotated[Path, typer.Option(help="With --all: the folder that holds clip-rn50 and the others.")] = Path(),
    revision: Annotated[str | None, typer.Option(help="The branch, created if need be; main unless given.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create private repositories.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list everything, send nothing.")] = False,
) -> None:
    """Upload a verified folder to the Hugging Face Hub, in one commit.

    The token is the one of `hf auth login` or HF_TOKEN. Run it again after an interruption: nothing is sent twice.

    Example: python -m conversion publish clip-vit-base-patch32 --repo ORG/clip-vit-base-patch32
    """
    if organization and not (directory or repo):
        uploads = prepare_all(organization, root, typer.echo)
    elif directory and repo and not organization:
        uploads = [prepare(directory, repo, typer.echo)]
    else:
        raise typer.BadParameter("give a folder and --repo ORG/NAME, or --all ORG")
    publish(uploads, revision, private, dry_run, typer.echo)


def main() -> None:
    try:
        app()
    except (CheckpointError, DownloadError, PublishError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
