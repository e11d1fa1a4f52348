"""The byte-pair vocabulary of all nine checkpoints (`bpe_simple_vocab_16e6.txt.gz` of github.com/openai/CLIP, MIT)."""

import gzip
from importlib.resources import files

from ..model.bpe_hf_clip import BOS_TOKEN, EOS_TOKEN, byte_alphabet

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49_152 - 256 - 2  # as many as the original reads of a longer file


def load_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the 49,408 tokens with their ids, and the 48,894 merges in order, as `SimpleTokenizer` builds them.

    The file that comes with the package holds only the merges that the original reads of its larger one.
    """
    return read_vocabulary(files(__package__).joinpath(VOCABULARY_FILE).read_bytes())


def read_vocabulary(packed: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the tokens with their ids, and the merges in order, of a file like the original's, gzip bytes."""
    _, *lines = gzip.decompress(packed).decode("utf-8").splitlines()  # the first names the file's version
    merges = [(first, second) for first, second in (line.split(" ") for line in lines[:MERGES])]
    alphabet = byte_alphabet().values()
    tokens = [
        *alphabet,
        *(symbol + "</w>" for symbol in alphabet),
        *(first + second for first, second in merges),
        BOS_TOKEN,
        EOS_TOKEN,
    ]
    return {token: index for index, token in enumerate(tokens)}, merges


__all__ = ["VOCABULARY_FILE", "load_vocabulary", "read_vocabulary"]
