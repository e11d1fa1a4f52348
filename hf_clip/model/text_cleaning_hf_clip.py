"""Clean texts as the original CLIP does: repair mojibake, resolve HTML entities, collapse spaces, lower-case."""

import html
import unicodedata
from functools import lru_cache

import ftfy
import regex
from ftfy.badness import is_bad

WHITESPACE = regex.compile(r"\s+")
# The source of these versions shows: in printable text of one segment without "&", `fix_text` changes only what
# `is_bad` finds, single characters and the normal form.
FTFY_IS_KNOWN = ftfy.__version__.startswith(("6.2.", "6.3."))
FTFY_SEGMENT = 1_000_000


def clean(text: str) -> str:
    """Repair and lower-case `text` as the original does: ftfy, HTML entities twice, single spaces."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return WHITESPACE.sub(" ", text).strip().lower()


@lru_cache(maxsize=2**16)
def _ftfy_keeps(character: str) -> bool:
    return ftfy.fix_text(character) == character


def is_clean(text: str) -> bool:
    """Return True only if ftfy and HTML decoding leave `text` alone; False may be wrong, and then costs time only."""
    if "&" in text or not text.isprintable():
        return False
    if text.isascii():
        return True
    return (
        FTFY_IS_KNOWN
        and len(text) < FTFY_SEGMENT
        and unicodedata.is_normalized("NFC", text)
        and not is_bad(text)
        and all(map(_ftfy_keeps, set(text)))
    )


def clean_chunks(text: str) -> list[str]:
    """Split the cleaned text at its spaces. No word crosses a space, so chunks can be encoded one by one."""
    return text.lower().split() if is_clean(text) else clean(text).split(" ")


__all__ = ["clean", "clean_chunks", "is_clean"]
