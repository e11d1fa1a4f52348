"""The `hf-clip` command: its verbs, and the one place where exceptions become an exit status."""

import sys
from collections.abc import Callable

import typer

from ..openai.errors import DownloadError
from ..utils.files import exit_on_signals
from ..utils.text import say
from .classify import classify
from .convert import convert
from .embed import embed
from .evaluate import COMMANDS as EVALUATE
from .export import export
from .finetune import finetune
from .index import index
from .merge import merge
from .search import duplicates, search
from .serve_app import serve_app
from .to_openai import to_openai
from .verify import verify
from .where import where

VERBS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "to-openai": to_openai,
    "verify": verify,
    "classify": classify,
    "embed": embed,
    "index": index,
    "search": search,
    "duplicates": duplicates,
    "export": export,
    "finetune": finetune,
    "merge": merge,
    "where": where,
    "app": serve_app,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "evaluate": ("Measure models: zero-shot classification, retrieval, linear probes, published data sets.", EVALUATE),
}
EXPECTED = (ValueError, TypeError, OSError, ImportError, DownloadError)


def make_app(help: str, verbs: dict[str, Callable[..., None]]) -> typer.Typer:
    """Make a command of `verbs`, by name, that lists them and prints plain tracebacks."""
    app = typer.Typer(
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, verb in verbs.items():
        app.command(name, no_args_is_help=True)(verb)
    return app


def run(app: typer.Typer) -> None:
    """Run a command; an expected exception ends it with one line `error: ...` and exit status 1."""
    exit_on_signals()
    try:
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


app = make_app("Convert CLIP checkpoints, verify them, and use them: label or embed images.", VERBS)
for name, (text, verbs) in GROUPS.items():
    app.add_typer(make_app(text, verbs), name=name)


def main() -> None:
    """Run `hf-clip`."""
    run(app)
