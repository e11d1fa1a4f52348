"""The tokenizer against the original on every kind of text and by every way in, and against the stock one where that is
the measure: pairs, overflow, offsets, files."""

import copy
import functools
import gzip
import json
import logging
import multiprocessing
import pickle
import random
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from support.originals import clip
from support.text_corpus import SENTENCES, corpus
from support.threads import assert_threads_agree
from tokenizers import Tokenizer
from torch.utils.data import DataLoader
from transformers import AddedToken, AutoTokenizer, BatchEncoding, CLIPTokenizer, DataCollatorWithPadding
from transformers.utils import logging as transformers_logging

from hf_clip.model import text_cleaning_hf_clip
from hf_clip.model.bpe_hf_clip import ChunkIds
from hf_clip.model.text_cleaning_hf_clip import clean, clean_chunks, is_clean
from hf_clip.model.tokenization_hf_clip import (
    HFCLIPBatchEncoding,
    HFCLIPTokenizer,
    OffsetsUnavailableError,
    TextTooLongError,
)
from hf_clip.openai.vocabulary import load_vocabulary

BOS, EOS = 49406, 49407
LONG = "a very long caption " * 30  # 122 tokens
TEXTS = ["a photo of a cat", "It's 2 DOGS, isn't it?!", "  naïve\tcafé ", "", "&lt;b&gt; don’t", "<|endoftext|>x", LONG]
ASCII = ["a photo of a cat", "It's two dogs, they're 12.5 years old!", "x", "Some  UNUSUALLY spaced\twords", "hello!!?"]


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary()


@pytest.fixture
def original(monkeypatch):
    """The tokenizer of `clip.tokenize`, which encodes each text of a block once."""
    tokenizer = clip.clip._tokenizer
    monkeypatch.setattr(tokenizer, "encode", functools.lru_cache(1000)(tokenizer.encode))
    return tokenizer


@pytest.fixture
def tokenizer(vocabulary):
    return HFCLIPTokenizer(*vocabulary)


@pytest.fixture
def stock(vocabulary):
    return CLIPTokenizer(*vocabulary, pad_token="<|endoftext|>", model_max_length=77)


@pytest.fixture
def messages(caplog, monkeypatch):
    """Gives the tokenizer's warnings so far."""
    library = logging.getLogger("transformers")
    monkeypatch.setattr(library, "propagate", False)  # transformers lets it propagate where the variable CI is set
    library.addHandler(caplog.handler)
    yield lambda: caplog.messages
    library.removeHandler(caplog.handler)


def assert_same_ids(tokenizer, original, texts: list[str]) -> None:
    rows = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    expected = clip.tokenize(texts, truncate=True)
    assert rows.dtype == expected.dtype
    differing = (rows != expected).any(dim=1) if rows.shape == expected.shape else torch.ones(len(texts), dtype=bool)
    assert not differing.any(), [ascii(texts[i]) for i in differing.nonzero()[:5, 0]]
    whole = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    assert [ascii(text) for text, ids in zip(texts, whole, strict=True) if ids != original.encode(text)] == []


# --- equal to the original --------------------------------------------------------------------------------------------


def test_vocabulary_is_the_originals(vocabulary, original):
    vocab, merges = vocabulary
    assert (vocab, merges) == (original.encoder, list(original.bpe_ranks))
    assert (len(vocab), len(merges)) == (49_408, 48_894)
    packed = files("hf_clip.openai").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    assert packed[3:8] == bytes(5)  # no name and no time in the gzip header
    assert len(gzip.decompress(packed).splitlines()) == 1 + 48_894  # the first line names the version


@pytest.mark.parametrize(("count", "seed"), [(5_000, 0), pytest.param(200_000, 1, marks=pytest.mark.slow)])
def test_equals_original_on_corpus(tokenizer, original, count, seed):
    texts = corpus(count, seed)
    assert len(texts) == count
    for start in range(0, count, 1000):
        assert_same_ids(tokenizer, original, texts[start : start + 1000])


def code_points(step: int, unassigned_step: int) -> list[int]:
    """Of the assigned ones every `step`-th, of those that Unicode leaves open or private every `unassigned_step`-th."""
    open_or_private = [unicodedata.category(chr(point)) in ("Cn", "Co") for point in range(0x110000)]
    assigned = [point for point, skipped in enumerate(open_or_private) if not skipped]
    unassigned = [point for point, skipped in enumerate(open_or_private) if skipped]
    return assigned[::step] + unassigned[::unassigned_step]


@pytest.mark.parametrize(
    ("step", "unassigned_step"),
    [
        (97, 499),
        pytest.param(1, 16, marks=pytest.mark.slow),
        pytest.param(1, 1, marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
)
def test_equals_original_on_code_points(tokenizer, original, step, unassigned_step):
    """Each alone and between letters, lone surrogates too (ftfy makes them U+FFFD)."""
    points = code_points(step, unassigned_step)
    for start in range(0, len(points), 4096):
        characters = [chr(point) for point in points[start : start + 4096]]
        texts = characters + [f"a{character}b" for character in characters]
        ids = tokenizer(texts, add_special_tokens=False).input_ids
        assert [ascii(text) for text, row in zip(texts, ids, strict=True) if row != original.encode(text)] == []


def test_equals_original_on_pairs_of_marks(tokenizer, original):
    """Two characters at a time of those that cleaning, case folding and the pattern treat specially."""
    marks = "aZ0 '&;!<|>sſſtKİıΣσς\u0301\u0345\u00a0\u3000\u200d\ufe0fﬁＡ①’“\x1c\x1b\x7f\x85é½ÃÂ\xad\u0130ß\ud800\udc00"
    texts = [first + second + tail for first in marks for second in marks for tail in ("", "s")]
    assert_same_ids(tokenizer, original, texts)


def test_long_texts_and_words(tokenizer, original):
    rng = random.Random(0)
    word = "".join(rng.choices("abcdefghijklmnop", k=3000))
    texts = [
        word,
        "猫" * 500,
        "!" * 1000,
        "é " * 3000,
        "<|endoftext|>" * 100,
        " ".join(SENTENCES),
        "\n".join(SENTENCES),
    ]
    assert_same_ids(tokenizer, original, texts)


def test_segment_boundary():
    """ftfy repairs segments of a million characters by themselves, and "Ã " only at the start of one."""
    text = "猫 " * 500_000 + "Ã b"
    assert " ".join(clean_chunks(text)) == clean(text)
    assert clean(text).endswith("猫 à b")
    assert clean(text[2:]).endswith("猫 ã b")


def test_is_clean_is_sound():
    texts = [text for text in corpus(5_000, seed=2) if is_clean(text)]
    assert sum(not text.isascii() for text in texts) > 500
    assert [ascii(text) for text in texts if clean(text).split() != clean_chunks(text)] == []


def test_unknown_ftfy_is_always_called(monkeypatch):
    assert is_clean("ein großer Hund")
    monkeypatch.setattr(text_cleaning_hf_clip, "FTFY_IS_KNOWN", False)
    assert not is_clean("ein großer Hund")
    assert is_clean("a big dog")


# --- every way in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_ways_in_for_one_text(tokenizer, original, text):
    body = original.encode(text)
    ids = [BOS, *body, EOS]
    assert tokenizer(text, verbose=False).input_ids == ids
    assert tokenizer.encode(text, verbose=False) == ids
    assert tokenizer.encode(text, add_special_tokens=False, verbose=False) == body
    assert tokenizer.tokenize(text, verbose=False) == [original.decoder[token] for token in body]
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text, verbose=False)) == body
    assert tokenizer.tokenize(text, add_special_tokens=True, verbose=False)[0] == "<|startoftext|>"
    assert tokenizer([text], verbose=False).input_ids == [ids]
    assert tokenizer((text, text), verbose=False).input_ids == [ids, ids]
    assert tokenizer([np.str_(text)], verbose=False).input_ids == [ids]
    assert tokenizer(text, truncation=True, return_tensors="pt").input_ids.tolist() == [
        ids[:76] + [EOS] * (len(ids) > 76)
    ]
    assert tokenizer(text_target=text, verbose=False).input_ids == ids
    assert tokenizer(text, text_target="x", verbose=False)["labels"] == tokenizer.encode("x")
    assert tokenizer(text, return_length=True, verbose=False)["length"] == [len(ids)]


def test_result_type_and_columns(tokenizer):
    batch = tokenizer(TEXTS[:3], padding=True, return_tensors="pt")
    assert type(batch) is HFCLIPBatchEncoding
    assert isinstance(batch, BatchEncoding)
    assert tokenizer.model_input_names == list(batch) == ["input_ids"]
    assert batch.is_fast
    assert batch.n_sequences == 1
    assert batch.to("cpu").input_ids is batch["input_ids"]
    assert list(tokenizer("a", return_attention_mask=True, return_token_type_ids=True)) == [
        *("input_ids", "token_type_ids", "attention_mask")
    ]


@pytest.mark.parametrize("tensors", ["pt", "np"])
def test_tensors(tokenizer, tensors):
    rows = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors=tensors).input_ids
    assert (np.asarray(rows) == clip.tokenize(TEXTS, truncate=True).numpy()).all()
    assert isinstance(rows, torch.Tensor if tensors == "pt" else np.ndarray)
    rows[0, 0] = 1  # nobody else's memory, and writable
    assert tokenizer(TEXTS[0], return_tensors=tensors).input_ids[0, 0] == BOS
    longest = tokenizer(TEXTS[:3], return_tensors=tensors).input_ids  # padded without being asked
    assert (np.asarray(longest) == clip.tokenize(TEXTS[:3]).numpy()[:, : longest.shape[1]]).all()
    assert longest.shape == (3, max(map(len, tokenizer(TEXTS[:3]).input_ids)))


def test_empty_batch(tokenizer):
    assert tokenizer([]).input_ids == []
    rows = tokenizer([], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(rows, clip.tokenize([]))
    assert rows.shape == (0, 77)
    assert tokenizer([], return_tensors="pt", padding=True).input_ids.shape == (0, 2)


@pytest.mark.parametrize("padding", [False, True, "max_length"])
@pytest.mark.parametrize("truncation", [None, True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_encodings_agree_with_the_rows(tokenizer, padding, truncation, side):
    """The quick way and the one through `Encoding`, which a column that only that has forces."""
    tokenizer.padding_side, tokenizer.truncation_side = side, "left" if side == "right" else "right"
    for extra in ({}, {"max_length": 9}, {"pad_to_multiple_of": 8, "max_length": 16}, {"add_special_tokens": False}):
        options = dict(padding=padding, truncation=truncation, return_attention_mask=True, verbose=False, **extra)
        quick = tokenizer(TEXTS, **options)
        thorough = tokenizer(TEXTS, return_special_tokens_mask=True, **options)
        assert quick.input_ids == thorough.input_ids
        assert quick.attention_mask == thorough.attention_mask
        assert [encoding.ids for encoding in quick.encodings] == quick.input_ids
        assert [encoding.attention_mask for encoding in quick[:3]] == quick.attention_mask[:3]
        for tensors in ("pt", "np") if padding and truncation else ():
            batch = tokenizer(TEXTS, return_tensors=tensors, **options)
            assert batch.input_ids.tolist() == quick.input_ids
            assert batch.attention_mask.tolist() == quick.attention_mask


def test_padding_as_in_stock(tokenizer, stock):
    stock.pad_token = "!"
    for options in (
        *({}, {"padding": True}, {"padding": "max_length"}, {"padding": "max_length", "max_length": 20}),
        *({"padding": True, "padding_side": "left"}, {"padding": True, "pad_to_multiple_of": 7}),
        *({"truncation": True, "max_length": 5}, {"max_length": 5}, {"padding": True, "truncation": "only_first"}),
    ):
        mine = tokenizer(ASCII[:2], return_attention_mask=True, **options)
        assert dict(mine) == dict(stock(ASCII[:2], return_attention_mask=True, **options)), options
    padded = tokenizer.pad([tokenizer(text) for text in ASCII], return_tensors="pt").input_ids
    assert torch.equal(padded, clip.tokenize(ASCII)[:, : padded.shape[1]])


@pytest.mark.parametrize("truncation", [True, "only_first", "only_second", "longest_first"])
def test_pairs_as_in_stock(tokenizer, stock, truncation):
    columns = dict.fromkeys(
        ("token_type_ids", "attention_mask", "special_tokens_mask", "offsets_mapping", "length"), True
    )
    columns = {f"return_{name}": on for name, on in columns.items()}
    pairs = list(zip(ASCII, [LONG, *ASCII[1:]], strict=True)) if truncation != "only_first" else [(LONG, "a cat")]
    firsts, seconds = map(list, zip(*pairs, strict=True))
    mine = tokenizer(firsts, seconds, truncation=truncation, **columns)
    theirs = stock(firsts, seconds, truncation=truncation, **columns)
    assert dict(mine) == dict(theirs)
    assert dict(tokenizer(pairs, truncation=truncation, **columns)) == dict(theirs)
    for i in range(len(pairs)):
        for method in ("tokens", "sequence_ids", "word_ids"):
            assert getattr(mine, method)(i) == getattr(theirs, method)(i)
    assert tokenizer.encode("a", "b") == stock.encode("a", "b")
    assert dict(tokenizer("a", "b", **columns)) == dict(stock("a", "b", **columns))


def test_pairs_of_any_text(tokenizer, original):
    ids = tokenizer("naïve ’tis", "&eacute;", return_tensors="pt").input_ids[0].tolist()
    assert ids == [BOS, *original.encode("naïve ’tis"), EOS, EOS, *original.encode("&eacute;"), EOS]


@pytest.mark.parametrize("side", ["right", "left"])
def test_overflow_as_in_stock(tokenizer, stock, side):
    for each in (tokenizer, stock):
        each.truncation_side, each.pad_token = side, "!"
    options = {"truncation": True, "max_length": 12, "stride": 3}
    options |= {"return_overflowing_tokens": True, "return_offsets_mapping": True}
    mine, theirs = tokenizer(LONG, **options), stock(LONG, **options, return_attention_mask=False)
    assert dict(mine) == dict(theirs)
    assert mine.overflow_to_sample_mapping == [0] * 17
    for columns in ({}, {"padding": True}):
        mine, theirs = (each([LONG, "a cat"], **options, **columns) for each in (tokenizer, stock))
        assert dict(mine) == {name: rows for name, rows in theirs.items() if name != "attention_mask"}
    mine = tokenizer([LONG, "a cat"], **options, padding=True, return_tensors="pt")
    assert mine.input_ids.tolist() == theirs.input_ids


def test_words_as_in_stock(tokenizer, stock, original):
    words = ["It's", "two", "dogs!", "", "they're  12.5"]
    for text in (words, [words, ["a"]]):
        mine = tokenizer(text, is_split_into_words=True, return_offsets_mapping=True)
        theirs = stock(text, is_split_into_words=True, return_offsets_mapping=True)
        assert (mine.input_ids, mine.offset_mapping) == (theirs.input_ids, theirs.offset_mapping)
        assert mine.word_ids() == theirs.word_ids()
    assert tokenizer(["caf&eacute;", "’"], is_split_into_words=True).input_ids == [BOS, *original.encode("café '"), EOS]
    assert tokenizer([], is_split_into_words=True).input_ids == [BOS, EOS]


# --- offsets and encodings --------------------------------------------------------------------------------------------


def test_offsets_point_into_the_text(tokenizer):
    text = "  Ein GROẞER Hund,\t\xa0猫は ΟΔΟΣ <|endoftext|>  it's"
    batch = tokenizer(text, return_offsets_mapping=True)
    words = [batch.word_to_chars(i) for i in dict.fromkeys(batch.word_ids()) if i is not None]
    assert [text[start:end] for start, end in words] == [
        *("Ein", "GROẞER", "Hund", ",", "猫は", "ΟΔΟΣ", "<|endoftext|>", "it", "'s")
    ]
    for (start, end), token in zip(batch.offset_mapping[1:-1], batch.tokens()[1:-1], strict=True):
        assert 0 <= start < end <= len(text)
        if text[start:end].isascii():
            assert text[start:end].lower() == token.removesuffix("</w>")
    assert batch.tokens()[batch.char_to_token(text.index("猫"))].startswith("ç")


@pytest.mark.parametrize("text", ["&lt;b&gt;", "don’t", "e\u0301", "İstanbul", "sÃ³", "ＡＢＣ", "\ud800", "\x00a"])
def test_no_offsets_for_changed_text(tokenizer, original, text):
    with pytest.raises(OffsetsUnavailableError, match="return_offsets_mapping"):
        tokenizer(["fine", text], return_offsets_mapping=True)
    with pytest.raises(OffsetsUnavailableError):
        tokenizer([["fine", text]], is_split_into_words=True, return_offsets_mapping=True)
    batch = tokenizer([text])
    assert batch.tokens(0)[1:-1] == [original.decoder[token] for token in original.encode(text)]
    assert set(batch[0].offsets) == {(0, 0)}
    assert batch.char_to_token(0, 0) is None


def test_encodings_survive_pickling(tokenizer):
    batch = pickle.loads(pickle.dumps(tokenizer(TEXTS[:2], return_tensors="pt", padding=True)))
    assert batch.tokens(0)[:2] == ["<|startoftext|>", "a</w>"]
    assert batch[1].ids == batch.input_ids[1].tolist()


# --- texts that are too long ------------------------------------------------------------------------------------------


def test_truncation_keeps_eot(tokenizer, messages):
    for length in (2, 3, 20, 77):
        ids = tokenizer([LONG], truncation=True, max_length=length, return_tensors="pt").input_ids
        assert torch.equal(ids, clip.tokenize([LONG], context_length=length, truncate=True))
    assert messages() == []


def test_tensors_are_cut_with_a_warning(tokenizer, messages):
    """The zero-shot pipeline calls it like this and drops `tokenizer_kwargs`."""
    ids = tokenizer(["a cat", LONG, LONG], return_tensors="pt", padding=True).input_ids
    assert torch.equal(ids, clip.tokenize(["a cat", LONG, LONG], truncate=True))
    assert len(messages()) == 1
    for part in ("text 1 of 3", "'a very long caption", "122 tokens", "cut to 77", "truncation=True", "1 more"):
        assert part in messages()[0]
    tokenizer(LONG, "pair", return_tensors="np")
    assert "text 0 of 1" in messages()[1]
    tokenizer([LONG], return_tensors="pt", verbose=False)
    tokenizer(["a cat"], return_tensors="pt")
    assert len(messages()) == 2


def test_lists_are_kept_with_one_warning(tokenizer, original, messages):
    for _ in range(2):
        assert tokenizer(LONG).input_ids[1:-1] == original.encode(LONG)
        assert tokenizer([LONG], truncation=False, return_tensors="pt").input_ids.shape == (1, 122)
    assert len(messages()) == 1
    assert "text 0 of 1" in messages()[0]
    assert "122 tokens, over the 77" in messages()[0]


def test_fixed_width_refuses(tokenizer):
    with pytest.raises(
        TextTooLongError, match=r"text 1 of 2 \('a very.* 122 tokens, over max_length=77.*truncation=True"
    ) as caught:
        tokenizer(["a cat", LONG], padding="max_length", truncation=False, return_tensors="pt")
    assert (caught.value.index, caught.value.tokens, caught.value.limit) == (1, 122, 77)
    with pytest.raises(TextTooLongError):
        tokenizer(["a cat", LONG], ["a", "b"], padding="max_length", truncation=False, return_tensors="pt")


# --- special and added tokens -----------------------------------------------------------------------------------------


def test_special_tokens_in_a_text(tokenizer, original):
    text = "a <|EndOfText|> b !<|endoftext|> <|startoftext|>"
    assert tokenizer.encode(text, add_special_tokens=False) == original.encode(text)
    assert EOS in original.encode(text)
    harmless = tokenizer(text, split_special_tokens=True)
    assert harmless.input_ids.count(EOS) == harmless.input_ids.count(BOS) == 1
    assert harmless[0].ids == harmless.input_ids
    assert tokenizer.decode(harmless.input_ids, skip_special_tokens=True) == (
        "a <| endoftext |> b !<| endoftext |> <| startoftext |>"
    )


def test_exclamation_mark_is_no_special_token(tokenizer):
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("!", 0)
    assert {token.content for token in tokenizer.added_tokens_decoder.values()} == {"<|startoftext|>", "<|endoftext|>"}
    assert tokenizer.tokenize("hello!! !?!") == ["hello</w>", "!!</w>", "!?!</w>"]


@pytest.mark.parametrize(
    "token",
    [
        *("<cat-toy>", "new token", "NEW", "ell", "toysh"),
        AddedToken("<toy>", special=True, normalized=False),
        AddedToken("Toy", normalized=False),
        AddedToken("toy", single_word=True),
        AddedToken("<toy>", lstrip=True, rstrip=True),
    ],
)
def test_added_tokens_as_in_stock(tokenizer, stock, token):
    for each in (tokenizer, stock):
        assert each.add_tokens([token, "toyshop"]) == 2
    text = "hello <cat-toy> <toy>s new token, a NEW <toy> Toy toy; toys new  toyshop Toy"
    mine, theirs = (each(text, return_offsets_mapping=True) for each in (tokenizer, stock))
    assert (mine.input_ids, mine.offset_mapping) == (theirs.input_ids, theirs.offset_mapping)
    assert tokenizer(text).input_ids == mine.input_ids
    assert len(tokenizer) == len(stock)
    assert tokenizer(text)[0].ids == tokenizer(text).input_ids
    restored = pickle.loads(pickle.dumps(tokenizer))
    assert restored(text).input_ids == tokenizer(text).input_ids


def test_added_tokens_and_cleaning(tokenizer, original):
    tokenizer.add_tokens(["<cat-toy>"])
    ids = tokenizer.encode("caf&eacute; don’t<cat-toy>naïve", add_special_tokens=False)
    assert ids == [*original.encode("café don't"), 49_408, *original.encode("naïve")]
    assert tokenizer.decode(ids) == "café don 't <cat-toy> naïve "
    assert tokenizer("<cat-toy> x", return_offsets_mapping=True).offset_mapping[1] == (0, 9)
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<x>"]}) == 1
    assert 49_409 in tokenizer.encode("a<x>b")
    assert 49_409 not in tokenizer.encode("a<x>b", split_special_tokens=True)
    assert tokenizer.decode(tokenizer.encode("a<x>b"), skip_special_tokens=True) == "a b"


def test_another_padding_token(vocabulary, tokenizer):
    eot = HFCLIPTokenizer(*vocabulary, pad_token="<|endoftext|>")
    assert eot(["a", "a b"], padding=True).input_ids[0] == [BOS, 320, EOS, EOS]
    new = HFCLIPTokenizer(*vocabulary, pad_token="[PAD]")
    assert new(["a", "a b"], padding=True).input_ids[0] == [BOS, 320, EOS, 49_408]
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer(["a", "a b"], padding=True).input_ids[0] == [BOS, 320, EOS, 49_408]
    assert tokenizer.decode([BOS, 320, EOS, 49_408], skip_special_tokens=True) == "a"
    none = HFCLIPTokenizer(*vocabulary, pad_token=None)
    with pytest.raises(ValueError, match="pad"):
        none(["a", "a b"], padding=True)


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_decode_is_the_originals(tokenizer, original):
    rng = random.Random(0)
    rows = [[rng.randrange(49_408) for _ in range(rng.randrange(40))] for _ in range(500)]
    rows += clip.tokenize(corpus(500, seed=3), truncate=True).tolist()
    assert tokenizer.batch_decode(rows) == [original.decode(row) for row in rows]
    assert tokenizer.decode(rows) == tokenizer.batch_decode(rows)
    assert tokenizer.decode(EOS) == "<|endoftext|>"
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize("naïve café")) == "naïve café "


@pytest.mark.parametrize("side", ["right", "left"])
def test_decode_without_special_tokens(tokenizer, side):
    texts = ["a photo of a cat", "hello !!", "!? oh", "", "naïve 猫"]
    for options in ({"return_tensors": "pt"}, {"return_tensors": "np"}, {}):
        ids = tokenizer(texts, padding="max_length", padding_side=side, **options).input_ids
        assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [
            "a photo of a cat",
            "hello !!",
            "!? oh",
            "",
            "naïve 猫",
        ]
    assert tokenizer.decode(tokenizer("a cat"), skip_special_tokens=True) == "a cat"


@pytest.mark.parametrize("token_id", [-1, 49_408, 10**9, 2**40])
def test_decode_names_an_unknown_id(tokenizer, token_id):
    with pytest.raises(ValueError, match=f"token id {token_id} is not in the vocabulary of 49408"):
        tokenizer.decode([320, token_id])


# --- files, processes, threads ----------------------------------------------------------------------------------------


def assert_behaves_as_built(tokenizer) -> None:
    assert type(tokenizer) is HFCLIPTokenizer
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, BOS, EOS)
    assert (tokenizer.model_max_length, tokenizer.model_input_names) == (77, ["input_ids"])
    rows = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    assert list(rows) == ["input_ids"]
    assert torch.equal(rows.input_ids, clip.tokenize(TEXTS, truncate=True))
    assert tokenizer(TEXTS[0]).input_ids == clip.tokenize(TEXTS[0])[0, :7].tolist()


def test_save_and_load(tokenizer, tmp_path):
    tokenizer(TEXTS, padding=True, truncation=True, max_length=5, return_special_tokens_mask=True)
    written = tokenizer.save_pretrained(tmp_path / "a")
    code = ["batches", "bpe", "packed_texts", "requirement", "text_cleaning", "tokenization"]
    names = [*(f"{name}_hf_clip.py" for name in code), "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert sorted(Path(path).name for path in written) == names[len(code) :]
    loaded = HFCLIPTokenizer.from_pretrained(tmp_path / "a")
    assert_behaves_as_built(loaded)
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    assert_behaves_as_built(HFCLIPTokenizer.from_pretrained(tmp_path / "b"))
    contents = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    assert contents["padding"] is contents["truncation"] is None


def test_choices_survive_saving(vocabulary, tmp_path):
    tokenizer = HFCLIPTokenizer(*vocabulary, padding_side="left")
    tokenizer.add_tokens(["<cat-toy>", AddedToken("<X>", normalized=False, single_word=True)])
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>", "extra_special_tokens": ["<y>"]})
    tokenizer.model_max_length = 50
    tokenizer.save_pretrained(tmp_path)
    loaded = HFCLIPTokenizer.from_pretrained(tmp_path)
    text = ["a <cat-toy> <X> <x> <y>", "b"]
    assert loaded(text, padding=True).input_ids == tokenizer(text, padding=True).input_ids
    assert (loaded.pad_token, loaded.model_max_length, loaded.padding_side) == ("<|endoftext|>", 50, "left")
    assert HFCLIPTokenizer.from_pretrained(tmp_path, pad_token="!", model_max_length=60).model_max_length == 60


def test_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert_behaves_as_built(AutoTokenizer.from_pretrained(tmp_path))


def test_loads_a_stock_repo(vocabulary, tmp_path):
    """As `CLIPTokenizer` writes it: padding with EOT, no limit, its padding and truncation baked in."""
    theirs = CLIPTokenizer(*vocabulary)
    theirs(["a", "b c"], padding="max_length", truncation=True, max_length=30, return_tensors="pt")
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is not None
    assert saved["truncation"] is not None
    assert_behaves_as_built(HFCLIPTokenizer.from_pretrained(tmp_path))
    kept = HFCLIPTokenizer.from_pretrained(tmp_path, pad_token="<|endoftext|>", model_max_length=50)
    assert (kept.pad_token_id, kept.model_max_length) == (EOS, 50)


def test_built_from_a_stock_backend(vocabulary, tmp_path):
    """How `from_pretrained` builds it as remote code, and for subclasses."""
    theirs = CLIPTokenizer(*vocabulary, model_max_length=77)
    theirs(["a", "b c"], padding="max_length", truncation=True, max_length=30)
    theirs.save_pretrained(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    loaded = HFCLIPTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    for built in (
        loaded,
        HFCLIPTokenizer(tokenizer_file=path),
        HFCLIPTokenizer(tokenizer_object=Tokenizer.from_file(path)),
    ):
        assert_behaves_as_built(built)
        assert built.backend_tokenizer.padding is built.backend_tokenizer.truncation is None
        assert built.backend_tokenizer.to_str() == HFCLIPTokenizer(*vocabulary).backend_tokenizer.to_str()


def test_loads_a_stock_repo_that_pads_with_an_added_exclamation_mark(vocabulary, tmp_path, original):
    CLIPTokenizer(*vocabulary, pad_token="!", model_max_length=77).save_pretrained(tmp_path)
    assert any(
        token["content"] == "!" for token in json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    )
    loaded = HFCLIPTokenizer.from_pretrained(tmp_path)
    assert_behaves_as_built(loaded)
    assert loaded.encode("hello!!", add_special_tokens=False) == original.encode("hello!!")


@pytest.mark.parametrize("extra", ["nothing", "tokenizer_config.json", "special_tokens_map.json"])
def test_loads_a_repo_of_vocab_and_merges(vocabulary, tmp_path, extra):
    CLIPTokenizer(*vocabulary).backend_tokenizer.model.save(str(tmp_path))
    tokens = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    if extra != "nothing":
        tokens["unk_token"] = {"content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False}
        tokens["unk_token"] |= {"__type": "AddedToken"} if "config" in extra else {}
        tokens |= {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77} if "config" in extra else {}
        (tmp_path / extra).write_text(json.dumps(tokens))
    assert_behaves_as_built(HFCLIPTokenizer.from_pretrained(tmp_path))


def test_save_vocabulary(tokenizer, tmp_path, vocabulary):
    paths = tokenizer.save_vocabulary(str(tmp_path), "x")
    assert [path.rpartition("/")[2] for path in paths] == ["x-vocab.json", "x-merges.txt"]
    assert_behaves_as_built(HFCLIPTokenizer(*paths))
    assert json.loads((tmp_path / "x-vocab.json").read_text(encoding="utf-8")) == vocabulary[0]


def test_tokenizer_json_serves_stock_and_others(tokenizer, stock, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ASCII:
        assert backend.encode(text).ids == tokenizer(text).input_ids
    assert backend.decode(tokenizer("a photo of a cat").input_ids).strip() == "a photo of a cat"
    assert CLIPTokenizer.from_pretrained(tmp_path)(ASCII).input_ids == stock(ASCII).input_ids


def test_copies(tokenizer):
    tokenizer(TEXTS, verbose=False)
    data = pickle.dumps(tokenizer)
    tokenizer(corpus(500), verbose=False)
    assert len(pickle.dumps(tokenizer)) == len(data)  # the caches stay behind
    for twin in (pickle.loads(data), copy.deepcopy(tokenizer), copy.copy(tokenizer)):
        assert_behaves_as_built(twin)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_data_loader_workers(tokenizer, start):
    def collate(texts):
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")

    collate = collate if start == "fork" else Collate(tokenizer)
    tokenizer(TEXTS, verbose=False)
    context = multiprocessing.get_context(start)
    loader = DataLoader(TEXTS * 4, batch_size=7, num_workers=2, collate_fn=collate, multiprocessing_context=context)
    rows = torch.cat([batch.input_ids for batch in loader])
    assert torch.equal(rows, clip.tokenize(TEXTS * 4, truncate=True))


class Collate:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts):
        return self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")


def test_threads(tokenizer, monkeypatch):
    monkeypatch.setattr(ChunkIds, "MAX_BYTES", 20_000)  # emptied all the time
    texts = corpus(1_000, seed=4)
    expected = clip.tokenize(texts, truncate=True)
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda _: Collate(tokenizer)(texts).input_ids, range(8))
        assert all(torch.equal(rows, expected) for rows in results)


def test_cache_is_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(ChunkIds, "MAX_BYTES", 100_000)
    chunks = tokenizer.cache["chunks", False]
    tokenizer(" ".join(f"word{i}" for i in range(1_000)), verbose=False)
    assert 0 < len(chunks) < 400
    assert chunks.bytes_held <= 100_000
    tokenizer("x" * 257, verbose=False)
    assert "x" * 257 not in chunks
    assert tokenizer.encode("word1 word2", add_special_tokens=False) == [2653, 272, 2653, 273]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": 3}, "a text must be a str .*; text 0 is 3"),
        ({"text": ["a", None]}, "text 1 is None"),
        ({"text": np.array(["a"])}, r"text 0 is array\(\['a'\]"),
        ({"text": [["a", "b", "c"]]}, r"text 0 is \('a', 'b', 'c'\)"),
        ({"text": ["a", "b"], "text_pair": "c"}, "text_pair must have one text for each of the 2 in text, got a str"),
        ({"text": ["a", "b"], "text_pair": ["c"]}, "got 1 of them"),
        ({"text": ["a"], "text_pair": [1]}, r"text 0 is \('a', 1\)"),
        ({"text": "a b", "is_split_into_words": True}, "is_split_into_words=True"),
        ({"text": "a", "truncation": True, "max_length": 1}, "max_length=1 has no room for 2 special tokens"),
        ({"text": "a", "return_tensors": "tf"}, "tf"),
        ({"text": "a", "padding": "widest"}, "widest"),
        ({"text": "a", "truncation": "both"}, "both"),
    ],
)
def test_bad_input(tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(**arguments)


def test_bad_vocabulary(tmp_path):
    with pytest.raises(ValueError, match=r"make no byte-pair vocabulary: .*out of vocabulary"):
        HFCLIPTokenizer({"a": 0}, [("b", "c")])
    with pytest.raises(ValueError, match="make no byte-pair vocabulary"):
        HFCLIPTokenizer(str(tmp_path / "vocab.json"))


def test_needs_a_vocabulary():
    with pytest.raises(ValueError, match="load_vocabulary"):
        HFCLIPTokenizer()


def test_python_and_regex_may_differ_on_new_characters(tokenizer, original):
    """Unassigned in this Python or in tokenizers' Unicode: the pattern that counts is the original's."""
    unassigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) == "Cn"]
    rng = random.Random(0)
    texts = ["x" + "".join(rng.choices(unassigned, k=3)) + "1" for _ in range(300)]
    assert_same_ids(tokenizer, original, texts)


def test_threads_get_what_they_asked_for(tokenizer):
    """Every way to call, with different cuts and columns, on one tokenizer."""
    long = " ".join(["a photo of the old lighthouse"] * 40)
    texts = [long, "a cat", "two “curly” dogs"]
    cut = {"truncation": True, "return_length": True}
    calls = [
        lambda: tokenizer(texts, max_length=77, **cut)["input_ids"],
        lambda: tokenizer(texts, max_length=9, **cut)["input_ids"],
        lambda: tokenizer(texts, return_length=True, verbose=False)["length"],
        lambda: tokenizer(long, truncation=True, max_length=20, return_overflowing_tokens=True, stride=3)["input_ids"],
        lambda: tokenizer(long, truncation=True, max_length=30, return_offsets_mapping=True)["offset_mapping"],
        lambda: tokenizer(texts, texts, truncation="only_second", max_length=400)["input_ids"],
        lambda: tokenizer(texts, texts, truncation=True, max_length=40, return_special_tokens_mask=True)["input_ids"],
        lambda: tokenizer([text.split() for text in texts], is_split_into_words=True, **cut)["input_ids"],
        lambda: [encoding.ids for encoding in tokenizer(texts, truncation=True, max_length=15).encodings],
        lambda: tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"].tolist(),
        lambda: tokenizer.tokenize(long, truncation=True, max_length=12),
        lambda: tokenizer.batch_decode(tokenizer(texts, verbose=False)["input_ids"]),
    ]
    assert_threads_agree(calls, lambda one, other: one == other)


def test_eight_threads_count_every_chunk_that_the_cache_holds(tokenizer):
    chunks = tokenizer.cache["chunks", False]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda start: [chunks[f"w{start}x{i}"] for i in range(500)], range(8)))
    held = sum(chunks.ENTRY_BYTES + 4 * len(chunk) + len(ids) for chunk, ids in chunks.items())
    assert chunks.bytes_held == held


def test_the_cache_never_waits_for_its_lock(tokenizer, original):
    """A process may be forked while another thread holds it."""
    with tokenizer.cache["chunks", False].lock:
        assert tokenizer.encode("unheard words", add_special_tokens=False) == original.encode("unheard words")


# --- what transformers' and other people's code expects ---------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        *({"pad_token": token} for token in (None, "!", "<|endoftext|>", "[PAD]")),
        *({"unk_token": token} for token in (None, "<|startoftext|>")),
        *({"bos_token": "<|endoftext|>"}, {"eos_token": "<|startoftext|>"}, {"model_max_length": 50}),
        *({"padding_side": "left"}, {"truncation_side": "left"}, {"split_special_tokens": True}),
        *({"model_input_names": ["input_ids", "attention_mask"]}, {"extra_special_tokens": ["<x>"]}),
    ],
    ids=str,
)
def test_every_argument_survives_save_and_load(vocabulary, settings, tmp_path):
    built = HFCLIPTokenizer(*vocabulary, **settings)
    built.save_pretrained(tmp_path / "a")
    loaded = HFCLIPTokenizer.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    for tokenizer in (loaded, HFCLIPTokenizer.from_pretrained(tmp_path / "b"), pickle.loads(pickle.dumps(built))):
        assert {name: getattr(tokenizer, name) for name in settings} == settings
        assert dict(tokenizer("a <x> cat", truncation=True, max_length=4)) == dict(
            built("a <x> cat", truncation=True, max_length=4)
        )


def test_no_padding_token_named_later_is_saved_too(tokenizer, tmp_path):
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert HFCLIPTokenizer.from_pretrained(tmp_path).pad_token is None
    tokenizer.pad_token = "!"
    tokenizer.save_pretrained(tmp_path)
    assert "pad_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert HFCLIPTokenizer.from_pretrained(tmp_path).pad_token == "!"


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_a_token_around_the_text_may_not_be_none(vocabulary, name):
    with pytest.raises(ValueError, match=f"{name} is None"):
        HFCLIPTokenizer(*vocabulary, **{name: None})


def test_use_does_not_change_the_pickled_state(tokenizer):
    before = pickle.dumps(tokenizer)
    tokenizer([LONG, "a cat"])  # warns, once for all
    tokenizer([LONG, "a cat"], truncation=True, padding=True, return_tensors="pt", split_special_tokens=True)
    tokenizer.pad([tokenizer("a cat"), tokenizer("a")])
    assert pickle.dumps(tokenizer) == before


def test_warnings_obey_the_verbosity_of_transformers(tokenizer, messages):
    verbosity = transformers_logging.get_verbosity()
    try:
        transformers_logging.set_verbosity_error()
        tokenizer([LONG], return_tensors="pt")
        assert messages() == []
        transformers_logging.set_verbosity_warning()
        tokenizer([LONG], return_tensors="pt")
        assert len(messages()) == 1
    finally:
        transformers_logging.set_verbosity(verbosity)


def test_asking_for_the_mask_by_name_says_how_to_get_it(tokenizer):
    batch = tokenizer(["a cat", "a"], return_tensors="pt")
    collated = DataCollatorWithPadding(tokenizer)([tokenizer("a cat"), tokenizer("a")])
    for each in (batch, collated, batch.to("cpu"), pickle.loads(pickle.dumps(batch)), copy.copy(batch), tokenizer("a")):
        with pytest.raises(KeyError, match="return_attention_mask=True"):
            each["attention_mask"]
        with pytest.raises(AttributeError, match="return_attention_mask=True"):
            _ = each.attention_mask
        assert "attention_mask" not in each
        assert each.get("attention_mask") is None
        assert not hasattr(each, "attention_mask")
        with pytest.raises(KeyError, match="labels"):
            each["labels"]
    masked = [tokenizer(text, return_attention_mask=True) for text in ("a cat", "a")]
    assert DataCollatorWithPadding(tokenizer)(masked)["attention_mask"].tolist() == [[1] * 4, [1, 1, 1, 0]]
