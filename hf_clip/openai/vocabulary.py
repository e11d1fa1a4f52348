"""The byte-pair vocabulary of all nine checkpoints (`bpe_simple_vocab_16e6.txt.gz` of github.com/openai/CLIP, MIT)."""

import gzip
from importlib.resources import files

from ..model.bpe_hf_clip import BOS_TOKEN, EOS_TOKEN, byte_alphabet


def load_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the 49,408 tokens with their ids, and the 48,894 merges in order, as `SimpleTokenizer` builds them.

    `bpe_merges.txt.gz` holds only the merges that the original reads of its larger file, one a line.
    """
    text = gzip.decompress(files(__package__).joinpath("bpe_merges.txt.gz").read_bytes()).decode("utf-8")
    merges = [(first, second) for first, second in (line.split(" ") for line in text.splitlines())]
    alphabet = byte_alphabet().values()
    tokens = [
        *alphabet,
        *(symbol + "</w>" for symbol in alphabet),
        *(first + second for first, second in merges),
        BOS_TOKEN,
        EOS_TOKEN,
    ]
    return {token: index for index, token in enumerate(tokens)}, merges


__all__ = ["load_vocabulary"]
