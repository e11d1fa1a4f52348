"""`python -m conversion`: release the nine checkpoints. What users need is in `hf-clip`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_clip.cli.app import make_app, run
from hf_clip.cli.options import CacheDir
from hf_clip.openai.published import CHECKPOINTS
from hf_clip.utils.text import say

Organization = Annotated[str, typer.Option("--org", metavar="ORG", help="The organization or user on the Hub.")]
Revision = Annotated[str | None, typer.Option(help="The branch, created if need be (default: main).")]
Private = Annotated[bool, typer.Option("--private", help="Create what is new as private.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and list everything, send nothing.")]


def release(
    organization: Organization,
    models: Annotated[str, typer.Option(help="Published names with commas between.")] = ",".join(CHECKPOINTS),
    root: Annotated[Path, typer.Option(help="The folder for the converted models.")] = Path("build/release"),
    golden_images: Annotated[
        Path | None, typer.Option(help="A folder with the images of published examples, instead of the web.")
    ] = None,
    cache_dir: CacheDir = None,
    revision: Revision = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Convert, verify, and publish checkpoints with their model cards, one after the other.

    Run it again after an interruption: it skips each step that is done. A dry run converts and verifies, but sends
    nothing.

    Example: python -m conversion release --org ORG --models RN50,ViT-B/32 --dry-run
    """
    from .release import release

    names = models.split(",")
    if unknown := [name for name in names if name not in CHECKPOINTS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(CHECKPOINTS)}")
    release(names, organization, root, golden_images, cache_dir, revision, private, dry_run, say)


def publish(
    directory: Annotated[Path | None, typer.Argument(help="A folder that `hf-clip verify` has passed.")] = None,
    repo: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="The repository; created if need be.")] = None,
    organization: Annotated[
        str | None, typer.Option("--all", metavar="ORG", help="Publish all nine, under the names of their folders.")
    ] = None,
    root: Annotated[Path, typer.Option(help="With --all: the folder that holds clip-rn50 and the others.")] = Path(),
    handler: Annotated[
        bool, typer.Option("--handler", help="Add handler.py and requirements.txt, which Inference Endpoints run.")
    ] = False,
    revision: Revision = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Upload a verified folder to the Hugging Face Hub, in one commit.

    The token is the one of `hf auth login` or HF_TOKEN. Run it again after an interruption: nothing is sent twice.

    Example: python -m conversion publish clip-vit-base-patch32 --repo ORG/clip-vit-base-patch32
    """
    from .publish import prepare, prepare_all, publish

    if organization and not (directory or repo):
        uploads = prepare_all(organization, root, say, handler)
    elif directory and repo and not organization:
        uploads = [prepare(directory, repo, say, handler)]
    else:
        raise typer.BadParameter("give a folder and --repo ORG/NAME, or --all ORG")
    publish(uploads, revision, private, dry_run, say)


def collect(
    organization: Organization,
    space: Annotated[
        str | None, typer.Option(metavar="NAME", help="Publish the app as a Space of this name, and add it.")
    ] = None,
    private: Private = False,
    dry_run: DryRun = False,
) -> None:
    """Gather the nine published models and the paper in a collection, with a Space that runs one of them.

    A collection that exists keeps its items and gets those that are missing.

    Example: python -m conversion collect --org ORG --space clip --dry-run
    """
    from .collect import collect

    collect(organization, space, private, dry_run, say)


def record_digests(cache_dir: CacheDir = None) -> None:
    """Add the original's digests under the installed Pillow to hf_clip/parity/data, and those of cached checkpoints.

    Pillow's resize differs between releases, so run it once under each supported one. The weights of each of the nine
    that the cache holds get a digest, by which copies on the Hub are recognized.

    Example: pip install --no-deps --target /tmp/pillow 'pillow==11.*' &&
    PYTHONPATH=/tmp/pillow python -m conversion record-digests
    """
    from .record_digests import record

    say(record(cache_dir))


app = make_app(
    "Release the nine checkpoints on the Hugging Face Hub.",
    {"release": release, "publish": publish, "collect": collect},
)
app.command("record-digests")(record_digests)


def main() -> None:
    """Run `python -m conversion`."""
    run(app)


if __name__ == "__main__":
    main()
