"""Clean texts as the original CLIP does: repair mojibake, resolve HTML entities, collapse spaces, lower-case."""

import html
import unicodedata
from functools import lru_cache

import ftfy
import regex
from ftfy.badness import is_bad
from tokenizers import NormalizedString, Regex

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


def lowered(text: str) -> str:
    """Lower-case `text`, each space a plain one."""
    text = text.lower()
    return text if text.isprintable() else "".join(" " if character.isspace() else character for character in text)


def keeps_places(text: str) -> bool:
    """Return True if cleaning changes only case and spaces, so that each character keeps its place among the others."""
    view = lowered(text)
    return len(view) == len(text) and (is_clean(text) or " ".join(view.split()) == clean(text))


# Rust's strings hold no lone surrogates: a text with one is cleaned beforehand, and marked by a character of no meaning
CLEANED = "\U0010ffff"
SPACES = Regex(" +")
NEEDS_MARK = regex.compile(f"[\ud800-\udfff{CLEANED}]")


def encodable(text: str) -> str:
    """Return `text` for a tokenizer that has a `CleaningNormalizer`, without lone surrogates."""
    return CLEANED + clean(text) if NEEDS_MARK.search(text) else text


class CleaningNormalizer:
    """Clean texts inside `tokenizers`, for `Normalizer.custom`.

    Offsets point into the text that was given where its characters keep their places, and are empty where not.
    """

    def normalize(self, normalized: NormalizedString) -> None:
        text = normalized.normalized
        if text.startswith(CLEANED) or not keeps_places(text):
            normalized.clear()
            normalized.append(text[1:] if text.startswith(CLEANED) else clean(text))
            return
        if text.isascii():
            normalized.lowercase()
        view = lowered(text)
        if normalized.normalized != view:
            characters = iter(view)
            normalized.map(lambda _: next(characters))
        normalized.replace(SPACES, " ")
        normalized.strip()


__all__ = ["CleaningNormalizer", "clean", "clean_chunks", "encodable", "is_clean", "keeps_places"]
