"""The names of the original's `clip/simple_tokenizer.py`."""

import os
from collections.abc import Iterable
from functools import cache

from ..model.bpe_hf_clip import byte_alphabet
from ..model.tokenization_hf_clip import HFCLIPTokenizer
from .vocabulary import load_vocabulary


@cache
def shared_tokenizer() -> HFCLIPTokenizer:
    """Return the one tokenizer of the nine checkpoints; threads may share it."""
    return HFCLIPTokenizer(*load_vocabulary())


def bytes_to_unicode() -> dict[int, str]:
    """Return the character that stands for each byte in the vocabulary."""
    return dict(byte_alphabet())


class SimpleTokenizer:
    """Encode and decode without special tokens, as the original's class.

    `encoder` and `decoder` map tokens to ids and back, `bpe_ranks` holds the merges in order. The vocabulary is the one
    of the nine checkpoints: another file, `bpe_path`, is refused.
    """

    def __init__(self, bpe_path: str | os.PathLike | None = None):
        if bpe_path is not None:
            raise ValueError(f"{bpe_path} cannot be read here: build HFCLIPTokenizer(vocab, merges) for a vocabulary")
        vocabulary, merges = load_vocabulary()
        self.encoder = vocabulary
        self.decoder = {index: token for token, index in vocabulary.items()}
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}

    def bpe(self, token: str) -> str:
        """Split a word, written in the characters of `byte_encoder`, into its tokens, with spaces between."""
        text = bytes(self.byte_decoder[character] for character in token).decode("utf-8", errors="replace")
        return " ".join(self.decoder[index] for index in self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length."""
        return shared_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ids, each word with a space behind it."""
        joined = "".join(self.decoder[int(token)] for token in tokens)
        content = bytearray(self.byte_decoder[character] for character in joined)
        return content.decode("utf-8", errors="replace").replace("</w>", " ")


__all__ = ["SimpleTokenizer", "bytes_to_unicode"]
