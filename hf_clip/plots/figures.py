"""matplotlib figures: how they are written to files, and the styles that several figures share."""

import logging
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..utils.files import replacing
from ..utils.text import listing

logger = logging.getLogger(__name__)

BAR_BACKGROUND = "#f0f0f0"
CHANCE_LINE: dict[str, Any] = {"color": "black", "linewidth": 0.8, "linestyle": ":"}


def supported_suffixes() -> set[str]:
    """Return the suffixes of the file formats that matplotlib writes."""
    from matplotlib.backend_bases import FigureCanvasBase

    return {f".{suffix}" for suffix in FigureCanvasBase.get_supported_filetypes()}


def save_figure(figure: Any, output: Path) -> None:
    """Write a figure in the format of the suffix; a failure leaves no partial file."""
    use_fallback_fonts(figure)
    with replacing(output, "new") as work, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # use_fallback_fonts has told of them
        figure.savefig(work, format=output.suffix[1:])


def use_fallback_fonts(figure: Any) -> None:
    """Draw characters that the default font lacks, such as Chinese ones, with installed fonts that have them."""
    from matplotlib import rcParams
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    characters = frozenset("".join(text.get_text() for text in texts)) - {"\n"}
    families, missing = _fallback_families(characters)
    for text in texts:
        text.set_fontfamily([*rcParams["font.family"], *families])
    if missing:
        logger.warning("no font here has %s: install one, such as Noto Sans CJK", listing(sorted(missing)))


@lru_cache(maxsize=16)
def _fallback_families(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Choose fonts for the characters that the default font lacks, and return the rest of them, too."""
    from matplotlib import font_manager

    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    missing = characters - set(map(chr, default.get_charmap()))
    families = []
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: font.name):
        # matplotlib's own last resort has a box for every character
        if missing and font.weight == 400 and font.style == "normal" and not font.name.startswith("Last Resort"):
            held = missing & set(map(chr, font_manager.get_font(font.fname).get_charmap()))
            families += [font.name] if held else []
            missing -= held
    return families, missing


def shortened(text: str, length: int = 30) -> str:
    """Cut `text` to `length` characters, with an ellipsis as the last one."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


__all__ = ["BAR_BACKGROUND", "CHANCE_LINE", "save_figure", "shortened", "supported_suffixes", "use_fallback_fonts"]
