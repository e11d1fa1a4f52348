"""`hf-clip verify`."""

from pathlib import Path
from typing import Annotated

import typer

from ..utils.text import say
from .options import CacheDir
from .sources import check_source


def verify(
    directory: Annotated[Path, typer.Argument(help="A converted or an exported folder.")],
    original: Annotated[
        str | None,
        typer.Option(
            help="The original: one of the nine names (downloaded if need be) or a file. By default the folder is "
            "compared with the record in its parity.json. For an exported folder: the id or new folder of its model."
        ),
    ] = None,
    trust_original: Annotated[
        bool, typer.Option("--trust-original", help="Run the code in an original that is none of the published files.")
    ] = False,
    golden_images: Annotated[
        Path | None, typer.Option(help="A folder with the images of published examples, in place of downloads.")
    ] = None,
    cache_dir: CacheDir = None,
) -> None:
    """Compare a folder with its original: config, tensors, pixels, token ids, features, logits.

    Writes parity.json into the folder, and the summary into its model card. Exits with 1 if anything differs. The files
    of an exported folder are measured again beside their model, and compared with its parity.json.

    Example: hf-clip verify clip-vit-base-patch32 --original ViT-B/32
    """
    check_source(directory, "verify", "model", "exported")

    from ..exported.manifest import is_exported

    if is_exported(directory):
        verify_exported(directory, original)
        return
    from rich.console import Console

    from ..openai.published import CHECKPOINTS
    from ..parity import verify as engine

    checks = engine.verify(directory, original, trust_original, golden_images, cache_dir, report=say)
    Console().print(engine.table(checks))
    if any(row.verdict is engine.Verdict.failed for row in checks):
        raise typer.Exit(1)
    if original in CHECKPOINTS:
        say(
            "its published accuracies, on their data sets: "
            f"hf-clip evaluate benchmark imagenetv2 vtab/dtd --model {directory} --published {original}"
        )


def verify_exported(directory: Path, original: str | None) -> None:
    """Measure each exported file again, and exit with 1 unless all are as recorded."""
    from ..export.verify import verify_export

    equal = verify_export(directory, original, report=say)
    say("equal" if equal else "not equal: export the model again")
    if not equal:
        raise typer.Exit(1)
