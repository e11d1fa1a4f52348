"""matplotlib figures: how they are written to files, and the styles that several figures share."""

from pathlib import Path
from typing import Any

from ..utils.files import replacing

BAR_BACKGROUND = "#f0f0f0"


def supported_suffixes() -> set[str]:
    """Return the suffixes of the file formats that matplotlib writes."""
    from matplotlib.backend_bases import FigureCanvasBase

    return {f".{suffix}" for suffix in FigureCanvasBase.get_supported_filetypes()}


def save_figure(figure: Any, output: Path) -> None:
    """Write a figure in the format of the suffix; a failure leaves no partial file."""
    with replacing(output, "new") as work:
        figure.savefig(work, format=output.suffix[1:])


def shortened(text: str, length: int = 30) -> str:
    """Cut `text` to `length` characters, with an ellipsis as the last one."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


__all__ = ["BAR_BACKGROUND", "save_figure", "shortened", "supported_suffixes"]
