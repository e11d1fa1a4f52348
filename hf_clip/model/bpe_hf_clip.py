"""CLIP's byte-pair vocabulary: the split of cleaned text into words, the words' ids, and a cache of them.

This module needs `tokenizers` and no torch.
"""

from array import array
from collections.abc import Sequence
from threading import Lock

import regex
from tokenizers import (
    NormalizedString,
    PreTokenizedString,
    Regex,
    Token,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
)
from tokenizers.models import BPE

BOS_TOKEN = "<|startoftext|>"
EOS_TOKEN = "<|endoftext|>"
END_OF_WORD = "</w>"

SPECIAL = r"<\|startoftext\|>|<\|endoftext\|>"
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
RUNS = r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORDS = regex.compile(f"{CONTRACTIONS}|{RUNS}", regex.IGNORECASE)
WORDS_AND_SPECIAL = regex.compile(f"{SPECIAL}|{CONTRACTIONS}|{RUNS}", regex.IGNORECASE)

ID_BYTES = array("q").itemsize


def byte_alphabet() -> dict[int, str]:
    """Map each byte to one visible character, in vocabulary order (`bytes_to_unicode` of the original)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


CHARACTER_OF_BYTE = byte_alphabet()
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def byte_symbols(word: str) -> str:
    """Return one visible character for each UTF-8 byte of `word`."""
    return word.encode("utf-8").decode("latin-1").translate(CHARACTER_OF_BYTE)


def pack(ids: Sequence[int]) -> bytes:
    """Pack token ids as native int64 bytes, so that a batch is joined and padded without a Python int per token."""
    return array("q", ids).tobytes()


def unpack(ids: bytes) -> list[int]:
    """Return the token ids that `pack` packed."""
    return memoryview(ids).cast("q").tolist()


class ChunkIds(dict[str, bytes]):
    """Cache the packed token ids of chunks: stretches of cleaned text without spaces.

    The cache holds at most `MAX_BYTES` (keys, values and slots, estimated from above), then starts over; a chunk of
    more than `MAX_CHARACTERS` is not kept. Threads may share it.
    """

    MAX_BYTES = 32 * 2**20
    MAX_CHARACTERS = 256
    ENTRY_BYTES = 256  # headers of key and value, and their slot in a table that has room to grow

    def __init__(self, model: BPE, words: regex.Pattern, special_ids: dict[str, int]):
        super().__init__()
        self.model, self.words, self.special_ids = model, words, special_ids
        self.bytes_held = 0
        self.lock = Lock()

    def __missing__(self, chunk: str) -> bytes:
        words = self.words.findall(chunk)
        if len(words) == 1:
            ids = self._word_ids(words[0])
        else:
            ids = b"".join(map(self.__getitem__, words))
        # never wait: a process forked while another thread held the lock would wait forever
        if len(chunk) <= self.MAX_CHARACTERS and self.lock.acquire(blocking=False):
            try:
                self._keep(chunk, ids)
            finally:
                self.lock.release()
        return ids

    def _keep(self, chunk: str, ids: bytes) -> None:
        if chunk in self:  # another thread was faster
            return
        size = self.ENTRY_BYTES + 4 * len(chunk) + len(ids)
        if self.bytes_held + size > self.MAX_BYTES:
            self.clear()
            self.bytes_held = 0
        self.bytes_held += size
        self[chunk] = ids

    def _word_ids(self, word: str) -> bytes:
        if word in self.special_ids:
            return pack([self.special_ids[word]])
        return pack([token.id for token in self.model.tokenize(byte_symbols(word))])


class WordTokenizer:
    """Split cleaned text and tokenize its words inside `tokenizers`, for `PreTokenizer.custom`."""

    def __init__(self, chunk_ids: ChunkIds):
        self.model, self.words, self.special_ids = chunk_ids.model, chunk_ids.words, chunk_ids.special_ids

    def pre_tokenize(self, string: PreTokenizedString) -> None:
        string.split(self._split)
        string.tokenize(self._tokenize)

    def _split(self, _: int, text: NormalizedString) -> list[NormalizedString | None]:
        return [text[word.start() : word.end()] for word in self.words.finditer(text.normalized)]

    def _tokenize(self, word: str) -> list[Token]:
        if word in self.special_ids:
            return [Token(self.special_ids[word], word, (0, len(word)))]
        tokens, end = [], 0
        for token in self.model.tokenize(byte_symbols(word)):
            # a symbol stands for a byte, and offsets count the bytes of the word
            start, end = end, end + len(token.value.removesuffix(END_OF_WORD))
            tokens.append(Token(token.id, token.value, (start, end)))
        return tokens


def byte_pair_model(
    vocab: str | dict[str, int], merges: str | list[tuple[str, str]] | None, unk_token: str | None
) -> BPE:
    """Build the BPE model of `vocab` and `merges`, tables or paths; ValueError if they do not fit together."""
    try:
        if isinstance(vocab, str):
            vocab, merges = BPE.read_file(vocab, str(merges))
        return BPE(
            vocab, merges or [], unk_token=unk_token, continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD
        )
    except Exception as error:  # the class that `tokenizers` raises
        raise ValueError(f"`vocab` and `merges` make no byte-pair vocabulary: {error}") from error


def set_pipeline(backend: Tokenizer) -> Tokenizer:
    """Set the steps of tokenizer.json on `backend`: as close to CLIP's as `tokenizers` can run without Python."""
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    words = Regex(f"{SPECIAL}|(?i:{CONTRACTIONS})|{RUNS}")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), byte_level]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END_OF_WORD, " ")])
    backend.no_padding()
    backend.no_truncation()
    return backend


__all__ = ["BOS_TOKEN", "EOS_TOKEN", "ChunkIds", "WordTokenizer", "byte_alphabet", "byte_pair_model", "set_pipeline"]
