"""The `hf-clip` command: its verbs, and the one place that turns exceptions into an exit status."""

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from shutil import get_terminal_size
from typing import Annotated

import typer

from ..openai.errors import DownloadError
from ..utils.files import exit_on_signals
from ..utils.packages import explaining
from ..utils.text import say
from .calibrate import calibrate
from .classify import classify
from .convert import convert
from .curate import dedup, filter_by_score
from .embed import embed
from .evaluate import COMMANDS as EVALUATE
from .export import export
from .few_shot import few_shot
from .finetune import finetune
from .index import index
from .merge import merge
from .search import duplicates, search
from .serve import serve
from .serve_app import serve_app
from .suspects import suspects
from .to_openai import to_openai
from .verify import verify
from .where import where

VERBS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "to-openai": to_openai,
    "verify": verify,
    "classify": classify,
    "calibrate": calibrate,
    "embed": embed,
    "index": index,
    "search": search,
    "duplicates": duplicates,
    "filter": filter_by_score,
    "dedup": dedup,
    "suspects": suspects,
    "few-shot": few_shot,
    "export": export,
    "finetune": finetune,
    "merge": merge,
    "where": where,
    "serve": serve,
    "app": serve_app,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "evaluate": ("Measure models: zero-shot classification, retrieval, linear probes, published data sets.", EVALUATE),
}
NARROW = 70
EXPECTED = (ValueError, TypeError, OSError, ImportError, DownloadError)


def make_app(help: str, verbs: dict[str, Callable[..., None]], completion: bool = False) -> typer.Typer:
    """Make a command of `verbs`, by name, whose help lists them and whose tracebacks are plain."""
    app = typer.Typer(
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # the columns of its tables cut names and words where a terminal is narrow
        rich_markup_mode="markdown" if get_terminal_size().columns >= NARROW else None,
        add_completion=completion,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, verb in verbs.items():
        app.command(name, no_args_is_help=True)(verb)
    return app


def run(app: typer.Typer) -> None:
    """Run a command; an expected exception ends it with the line `error: ...` and exit status 1."""
    exit_on_signals()
    try:
        with explaining("this command"):
            app()
    except EXPECTED as error:
        _fail(str(error) or type(error).__name__)
    except RuntimeError as error:
        if "torch" not in sys.modules or not isinstance(error, sys.modules["torch"].OutOfMemoryError):
            raise
        _fail("the memory of the GPU is too small: choose a smaller --batch-size")


def _fail(message: str) -> None:
    say(f"error: {message}", err=True)
    raise SystemExit(1) from None


def show_version(shown: bool) -> None:
    """Print the versions of hf_clip and of the packages that compute, and exit."""
    if shown:
        # from their metadata: importing torch takes seconds
        found = []
        for name in ("hf-clip", "hf-clip-exported", "transformers", "torch", "onnxruntime", "openvino"):
            with suppress(PackageNotFoundError):
                found.append(f"{name} {version(name)}")
        say(", ".join(found))
        raise typer.Exit


app = make_app("", VERBS, completion=True)


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Convert CLIP checkpoints, verify them, and use them: label or embed images."""


for name, (text, verbs) in GROUPS.items():
    app.add_typer(make_app(text, verbs), name=name)


def main() -> None:
    """Run `hf-clip`."""
    run(app)
