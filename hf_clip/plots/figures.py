"""Figures of matplotlib as files."""

from pathlib import Path
from typing import Any

from ..utils.files import replacing


def supported_suffixes() -> set[str]:
    """Return the suffixes of the formats that matplotlib can write."""
    from matplotlib.backend_bases import FigureCanvasBase

    return {f".{suffix}" for suffix in FigureCanvasBase.get_supported_filetypes()}


def save_figure(figure: Any, output: Path) -> None:
    """Write a figure in the format that the suffix names, whole or not at all."""
    with replacing(output, "new") as work:
        figure.savefig(work, format=output.suffix[1:])


__all__ = ["save_figure", "supported_suffixes"]
