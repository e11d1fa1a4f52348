"""Texts to CLIP's token ids: cleaned, split, encoded, cut and padded, without an object for each token.

This module needs `tokenizers` and NumPy, and no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import regex

from .bpe_hf_clip import ID_BYTES, ChunkIds, pack, unpack
from .text_cleaning_hf_clip import clean_chunks

PAD_TOKEN = "!"  # id 0, which the original fills its rows with
MODEL_MAX_LENGTH = 77


class TextTooLongError(ValueError):
    """A text has more tokens than columns, and `truncation=False` forbids cutting it.

    `problem` is the sentence without the advice, `index` the text's place in the batch, `tokens` its length, and
    `limit` the number of columns.
    """

    def __init__(self, problem: str, advice: str, index: int, tokens: int, limit: int):
        super().__init__(problem, advice, index, tokens, limit)
        self.problem, self.advice, self.index, self.tokens, self.limit = problem, advice, index, tokens, limit

    def __str__(self) -> str:
        return f"{self.problem}, {self.advice}"


@dataclass(frozen=True)
class PackedTexts:
    """Token ids of texts, packed as native int64 bytes.

    Args:
        rows: For each text its ids, without special tokens.
        start: The ids before each text.
        end: The ids after each text.
        lengths: The number of ids of each text, special tokens included, (N,) int64.
    """

    rows: list[bytes]
    start: bytes
    end: bytes
    lengths: np.ndarray

    @classmethod
    def encode(cls, texts: Sequence[str], chunk_ids: ChunkIds, start: bytes, end: bytes) -> "PackedTexts":
        """Clean and encode texts; `start` and `end` go around each."""
        ids_of = chunk_ids.__getitem__
        rows = [b"".join(map(ids_of, clean_chunks(text))) for text in texts]
        lengths = (np.fromiter(map(len, rows), np.int64, len(rows)) + len(start) + len(end)) // ID_BYTES
        return cls(rows, start, end, lengths)

    @property
    def longest(self) -> int:
        """The number of ids of the longest text, special tokens included."""
        return int(self.lengths.max(initial=(len(self.start) + len(self.end)) // ID_BYTES))

    def cut(self, limit: int, from_right: bool = True) -> "PackedTexts":
        """Cut texts to `limit` ids; special tokens stay."""
        if self.longest <= limit:
            return self
        room = limit * ID_BYTES - len(self.start) - len(self.end)
        rows = [row[:room] if from_right else row[max(0, len(row) - room) :] for row in self.rows]
        return replace(self, rows=rows, lengths=np.minimum(self.lengths, limit))

    def padded(self, width: int, pad_id: int, pad_right: bool = True) -> list[bytes]:
        """Return the ids of each text, packed, with special tokens and padding up to `width` ids."""
        around = len(self.start) + len(self.end)
        padding = pack([pad_id] * width)
        if pad_right:
            return [b"".join((self.start, row, self.end, padding[len(row) + around :])) for row in self.rows]
        return [b"".join((padding[len(row) + around :], self.start, row, self.end)) for row in self.rows]

    def matrix(self, width: int, pad_id: int, pad_right: bool = True) -> np.ndarray:
        """Return the ids as a writable array (N, width) int64; no text has more than `width` ids."""
        rows = bytearray().join(self.padded(width, pad_id, pad_right))
        return np.frombuffer(rows, np.int64).reshape(len(self.rows), width)

    def lists(self, width: int, pad_id: int, pad_right: bool = True) -> list[list[int]]:
        """Return the ids as lists, of at least `width` ids each."""
        return [unpack(row) for row in self.padded(width, pad_id, pad_right)]


def describe_too_long(texts: Sequence[Any], lengths: Sequence[int] | np.ndarray, limit: int) -> tuple[str, int] | None:
    """Describe the texts of more than `limit` tokens in half a sentence; return it with the first one's place."""
    places = np.flatnonzero(np.asarray(lengths) > limit)
    if not len(places):
        return None
    first = int(places[0])
    message = f"text {first} of {len(texts)} ({shorten(texts[first])}) has {lengths[first]} tokens"
    if len(places) > 1:
        message += f" (and {len(places) - 1} more are too long)"
    return message, first


def shorten(value: Any, most: int = 80) -> str:
    """Return `value` as it is written in code, on one line of at most `most` characters and an ellipsis."""
    text = regex.sub(r"\n\s*", " ", repr(value))  # arrays
    return text if len(text) <= most else text[:most] + "..."


__all__ = ["MODEL_MAX_LENGTH", "PAD_TOKEN", "PackedTexts", "TextTooLongError", "describe_too_long", "shorten"]
