"""The plain tokenizer beside the original's."""

import gzip
import pickle
from pathlib import Path

import pytest
from clip import simple_tokenizer as theirs
from support.text_corpus import corpus

from hf_clip.openai import clip, simple_tokenizer


@pytest.fixture(scope="module")
def right() -> theirs.SimpleTokenizer:
    return theirs.SimpleTokenizer()


@pytest.fixture
def mine() -> simple_tokenizer.SimpleTokenizer:
    return simple_tokenizer.SimpleTokenizer()


def test_attributes_are_the_original_s(right, mine):
    assert vars(mine).keys() == vars(right).keys()
    for name in ("encoder", "decoder", "byte_encoder", "byte_decoder", "bpe_ranks", "cache"):
        assert getattr(mine, name) == getattr(right, name)
    assert (mine.pat.pattern, mine.pat.flags) == (right.pat.pattern, right.pat.flags)
    assert simple_tokenizer.bytes_to_unicode() == theirs.bytes_to_unicode()


def test_equals_the_original_on_corpus(right, mine):
    for text in (*corpus(1_000, 0), "", "<|startoftext|> naïve ☕ 3rd", "x" * 200, " a\u3000b ", "don&amp;#39;t"):
        assert mine.encode(text) == right.encode(text)
        assert mine.decode(mine.encode(text)) == right.decode(right.encode(text))
        assert simple_tokenizer.basic_clean(text) == theirs.basic_clean(text)
        assert simple_tokenizer.whitespace_clean(text) == theirs.whitespace_clean(text)
    # the original keeps no words of one character
    assert {word: split for word, split in mine.cache.items() if len(word) > 1} == right.cache


@pytest.mark.parametrize("word", ["a", "aaaa", "abab", "photographer", ("a", "b", "c</w>")])
def test_words(word, right, mine):
    assert simple_tokenizer.get_pairs(word) == theirs.get_pairs(word)
    if isinstance(word, str):
        assert mine.bpe(word) == right.bpe(word)


def test_changes_are_seen(right, mine):
    for tokenizer in (right, mine):
        tokenizer.encoder["<dog>"] = 49_408
        tokenizer.decoder[49_408] = "<dog>"
        tokenizer.cache["zebra"] = "<dog>"
        tokenizer.bpe_ranks = {("q", "x</w>"): 0}
    assert mine.encode("zebra qx") == right.encode("zebra qx")
    assert mine.encode("zebra")[0] == 49_408
    right.__init__()


def test_vocabulary_files(right, mine, tmp_path):
    lines = gzip.decompress(Path(simple_tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    assert [tuple(merge.split()) for merge in lines[1 : 49_152 - 256 - 2 + 1]] == list(right.bpe_ranks)
    (tmp_path / "small.txt.gz").write_bytes(gzip.compress("\n".join(lines[:101]).encode()))
    small = [module.SimpleTokenizer(str(tmp_path / "small.txt.gz")) for module in (theirs, simple_tokenizer)]
    assert small[0].encoder == small[1].encoder
    assert len(small[1].encoder) == 512 + 100 + 2
    assert small[0].encode("the cat") == small[1].encode("the cat")
    assert simple_tokenizer.SimpleTokenizer(theirs.default_bpe()).encoder == right.encoder
    assert pickle.loads(pickle.dumps(mine)).encode("a dog") == mine.encode("a dog")


def test_one_tokenizer_of_the_module():
    assert clip._tokenizer is clip._tokenizer
    assert clip._tokenizer.encoder["<|endoftext|>"] == 49_407
