"""The command lines, run in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from conversion.__main__ import main as conversion_main
from hf_clip.cli.app import main


def run(*arguments: str | Path) -> int:
    """Run `hf-clip`, and return its exit status."""
    return _status(main, "hf-clip", *arguments)


def run_conversion(*arguments: str | Path) -> int:
    """Run `python -m conversion`, and return its exit status."""
    return _status(conversion_main, "conversion", *arguments)


def _status(main: Callable[[], None], *arguments: str | Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", list(map(str, arguments)))
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
    return 0
