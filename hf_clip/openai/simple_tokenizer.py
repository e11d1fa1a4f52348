"""The names of the original's `clip/simple_tokenizer.py`: byte-pair encoding in plain Python, open to change.

`tokenize` uses the package's fast tokenizer instead; both give the same ids.
"""

import html
import os
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import ftfy

from ..model.bpe_hf_clip import BOS_TOKEN, END_OF_WORD, EOS_TOKEN, WORDS_AND_SPECIAL, byte_alphabet
from ..model.text_cleaning_hf_clip import WHITESPACE
from ..model.tokenization_hf_clip import HFCLIPTokenizer
from .vocabulary import VOCABULARY_FILE, load_vocabulary, read_vocabulary


@cache
def shared_tokenizer() -> HFCLIPTokenizer:
    """Return the one tokenizer of the nine checkpoints; threads may share it."""
    return HFCLIPTokenizer(*load_vocabulary())


@cache
def default_bpe() -> str:
    """Return the path of the nine checkpoints' vocabulary file, in the original's format."""
    return str(Path(__file__).with_name(VOCABULARY_FILE))


@cache
def bytes_to_unicode() -> dict[int, str]:
    """Return the character that stands for each byte in the vocabulary."""
    return byte_alphabet()


def get_pairs(word: Sequence[str]) -> set[tuple[str, str]]:
    """Return the pairs of neighboring symbols in a word."""
    return set(pairwise(word))


def basic_clean(text: str) -> str:
    """Repair mojibake, resolve HTML entities that were escaped up to twice, and strip spaces at the ends."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def whitespace_clean(text: str) -> str:
    """Make each run of whitespace one space, and strip spaces at the ends."""
    return WHITESPACE.sub(" ", text).strip()


class SimpleTokenizer:
    """Encode and decode without special tokens around the text, as the original's class does.

    `encoder` and `decoder` map tokens to ids and back, `bpe_ranks` holds the merges in order, `cache` the words that
    were split before, `pat` the pattern of words. All are read at each call, so a program may change them.

    Args:
        bpe_path: A vocabulary file in the original's format; `default_bpe()` unless given.
    """

    def __init__(self, bpe_path: str | os.PathLike | None = None):
        self.encoder, merges = read_vocabulary(Path(bpe_path or default_bpe()).read_bytes())
        self.decoder = {index: token for token, index in self.encoder.items()}
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.cache = {token: token for token in (BOS_TOKEN, EOS_TOKEN)}
        self.pat = WORDS_AND_SPECIAL

    def bpe(self, token: str) -> str:
        """Split a word, written in the characters of `byte_encoder`, into its tokens, with spaces between."""
        if token not in self.cache:
            word = [*token[:-1], token[-1] + END_OF_WORD]
            while pairs := get_pairs(word).intersection(self.bpe_ranks):
                word = _merge(word, min(pairs, key=self.bpe_ranks.__getitem__))
            self.cache[token] = " ".join(word)
        return self.cache[token]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length."""
        ids = []
        for word in self.pat.findall(whitespace_clean(basic_clean(text)).lower()):
            symbols = "".join(self.byte_encoder[byte] for byte in word.encode("utf-8"))
            ids += [self.encoder[token] for token in self.bpe(symbols).split(" ")]
        return ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids, each word with a space behind it."""
        joined = "".join(self.decoder[int(token)] for token in tokens)
        content = bytearray(self.byte_decoder[character] for character in joined)
        return content.decode("utf-8", errors="replace").replace(END_OF_WORD, " ")


def _merge(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of `pair` in a word, from the left."""
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


__all__ = [
    "SimpleTokenizer",
    "basic_clean",
    "bytes_to_unicode",
    "default_bpe",
    "get_pairs",
    "shared_tokenizer",
    "whitespace_clean",
]
