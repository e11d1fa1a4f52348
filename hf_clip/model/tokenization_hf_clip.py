"""CLIP's byte-level BPE tokenizer: `HFCLIPTokenizer` gives the ids of the original's `SimpleTokenizer` for any text."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex
import torch
from tokenizers import (
    AddedToken,
    Encoding,
    PreTokenizedString,
    Regex,
    Token,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from transformers import (
    BatchEncoding,
    PreTrainedTokenizerFast,  # noqa: F401 (diffusers loads a class by a base class that its module names)
    TokenizersBackend,
)
from transformers.tokenization_utils_base import LARGE_INTEGER, TruncationStrategy
from transformers.utils import PaddingStrategy, TensorType, logging

from .bpe_hf_clip import (
    BOS_TOKEN,
    BYTE_OF_CHARACTER,
    CONTRACTIONS,
    END_OF_WORD,
    EOS_TOKEN,
    ID_BYTES,
    RUNS,
    SPECIAL,
    WORDS,
    WORDS_AND_SPECIAL,
    ChunkIds,
    byte_symbols,
    pack,
    unpack,
)
from .text_cleaning_hf_clip import clean, clean_chunks

# named below transformers' own logger, whose verbosity it obeys
logger = logging.get_logger(f"transformers.{__name__}")

PAD_TOKEN = "!"  # id 0, which the original fills its rows with
MODEL_MAX_LENGTH = 77

ENCODING_ATTRIBUTES = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}
WARNED_OF_LENGTH = "sequence-length-is-longer-than-the-specified-maximum"  # where the base class notes it
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


NO_MASK = (
    "the batch has no attention_mask, because CLIP's text model is causal and pools at the first EOT, so padding after "
    "it changes nothing: leave the mask out, or pass return_attention_mask=True to the tokenizer to get one"
)


class TextTooLongError(ValueError):
    """Raised for a text of more tokens than columns where `truncation=False` forbids to cut it.

    `problem` is the sentence without the advice, `index` the text's place in the batch, `tokens` its length, and
    `limit` the number of columns.
    """

    def __init__(self, problem: str, advice: str, index: int, tokens: int, limit: int):
        super().__init__(problem, advice, index, tokens, limit)
        self.problem, self.advice, self.index, self.tokens, self.limit = problem, advice, index, tokens, limit

    def __str__(self) -> str:
        return f"{self.problem}, {self.advice}"


class OffsetsUnavailableError(ValueError):
    """Raised for offsets of a text that cleaning changed (mojibake, HTML, Unicode normal form)."""


class ExplainsMissingMask:
    """Mixin for batches: say why there is no `attention_mask` when code asks for it by name."""

    def __getitem__(self, item):
        try:
            return super().__getitem__(item)  # type: ignore[misc]
        except KeyError:
            raise KeyError(NO_MASK if item == "attention_mask" else item) from None

    def __getattr__(self, item: str):
        try:
            return super().__getattr__(item)  # type: ignore[misc]
        except AttributeError:
            raise AttributeError(NO_MASK if item == "attention_mask" else item) from None


class HFCLIPBatchEncoding(ExplainsMissingMask, BatchEncoding):
    """Explain, in a `BatchEncoding`, why it has no `attention_mask`."""


class AddedTokens:
    """Find a user's added tokens: the leftmost, then the longest, as `tokenizers` does."""

    def __init__(self, tokens: dict[int, AddedToken]):
        longest_first = sorted(tokens.items(), key=lambda item: -len(item[1].content))
        self.ids = [token_id for token_id, _ in longest_first]
        self.pattern = regex.compile("|".join(f"({self._pattern(token)})" for _, token in longest_first))

    @staticmethod
    def _pattern(token: AddedToken) -> str:
        content = regex.escape(clean(token.content) if token.normalized else token.content)
        if token.single_word:
            content = rf"(?<!\w){content}(?!\w)"
        return (r"\s*" if token.lstrip else "") + content + (r"\s*" if token.rstrip else "")

    def cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield the stretches of `text` in order, each with the id of the added token that it is, or None."""
        end = 0
        if self.ids:
            for match in self.pattern.finditer(text):
                yield text[end : match.start()], None
                yield match.group(), self.ids[match.lastindex - 1]
                end = match.end()
        yield text[end:], None


class Pieces(NamedTuple):
    """Hold the words and whole tokens of a text, each at `view[start:end]`, with the id of a whole token."""

    view: str
    spans: list[tuple[int, int, int | None]]
    aligned: bool  # `view` is the text itself in lower case, character for character


class TooLong(Enum):
    """Name what becomes of a text that has more tokens than fit."""

    CUT = "truncation=True"
    CUT_AND_WARN = "truncation not given, tensors asked for"
    KEEP_AND_WARN = "no truncation"
    REFUSE = "truncation=False, but tensors of a fixed width asked for"


class Request(NamedTuple):
    """Hold the arguments of a call. `limit` is the most tokens that fit, `columns` name what to return."""

    columns: set[str]
    tensor_type: TensorType | None
    add_special_tokens: bool
    split_special_tokens: bool
    overflowing: bool
    too_long: TooLong
    limit: int
    truncation: TruncationStrategy
    truncation_side: str
    stride: int
    max_length: int | None
    padding: PaddingStrategy
    padding_side: str
    pad_to_multiple_of: int | None
    verbose: bool

    @property
    def most_tokens(self) -> int | None:
        """Return the length that rows are cut to, None for no cut."""
        return None if self.truncation == TruncationStrategy.DO_NOT_TRUNCATE else self.max_length

    def width(self, longest: int) -> int:
        """Return the length that rows are padded to, given the longest; 0 for no padding."""
        if self.padding == PaddingStrategy.DO_NOT_PAD:
            return 0
        width = longest if self.padding == PaddingStrategy.LONGEST else self.max_length
        multiple = self.pad_to_multiple_of or 1
        return -(-(width or 0) // multiple) * multiple


class LazyEncodings(Sequence[Encoding]):
    """Give the `Encoding` of each text of a batch (tokens, words, offsets), made when looked at."""

    def __init__(self, texts: Sequence[str], encode: Callable[[str], Encoding]):
        self.texts, self.encode = texts, encode

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.encode(text) for text in self.texts[index]]
        return self.encode(self.texts[index])

    def __reduce__(self) -> tuple:
        return list, (list(self),)


def _one_token() -> Encoding:
    text = PreTokenizedString("a")
    text.tokenize(lambda word: [Token(0, word, (0, 1))])
    return text.to_encoding()


ONE_TOKEN = _one_token()


class HFCLIPTokenizer(TokenizersBackend):
    """Tokenize texts for CLIP: the ids of the original's `clip.tokenize` for every `str`, from any CLIP repository.

    Texts are cleaned in Python (ftfy, HTML entities, spaces, lower case) and split by the original's own pattern; only
    the merges run in `tokenizers`. `backend_tokenizer`, which is what tokenizer.json holds for other programs, is the
    nearest pipeline that `tokenizers` can express by itself: it lacks ftfy and HTML.

    Where it differs from the stock `CLIPTokenizer`:

    - `model_input_names` is `["input_ids"]`: attention is causal and pooled at the first EOT, so no mask is needed. Ask
      for one with `return_attention_mask=True`. Padding is id 0, as in the original.
    - `return_tensors` always gives a rectangle: without `padding`, rows are padded to the longest.
    - A text of over `model_max_length` tokens can't go through the model. `truncation=True` cuts it and keeps EOT last.
      Where `truncation` is not given, `return_tensors` cuts it with a warning (pipelines can't pass `truncation`) and
      plain lists keep all ids. `truncation=False` never cuts: rows are then too long for the model, and if
      `padding="max_length"` and `return_tensors` ask for a fixed width, `TextTooLongError` is raised.
    - `decode` equals the original's, special tokens and last space included; `skip_special_tokens=True` drops special
      tokens, padding and outer spaces.
    - `return_offsets_mapping` raises `OffsetsUnavailableError` for a text that cleaning changes beyond case and spaces;
      in `encodings`, all offsets of such a text are (0, 0).
    - Special tokens written in a text count where the original's pattern finds them, so not in "!<|endoftext|>";
      `split_special_tokens=True` makes them ordinary text.

    Lone surrogates become U+FFFD (by ftfy), as in the original. Encoded words are cached, in at most 32 MiB.

    Args:
        vocab: token -> id, or the path of a vocab.json. `hf_clip.openai.vocabulary.load_vocabulary` gives CLIP's.
        merges: pairs of tokens in order of priority, or the path of a merges.txt.

    Raises:
        TextTooLongError: A text has more tokens than a fixed width, and `truncation=False` forbids to cut it.
        OffsetsUnavailableError: Offsets are asked for a text that cleaning changes beyond case and spaces.
        ValueError: A text is no text, or the vocabulary makes none.

    Example:
        >>> tokenizer = HFCLIPTokenizer.from_pretrained("clip-rn50")
        >>> ids = tokenizer(["a cat", "two dogs"], return_tensors="pt").input_ids  # (2, longest)
    """

    _auto_class = "AutoTokenizer"
    vocab_files_names = {"vocab_file": "vocab.json", "merges_file": "merges.txt", "tokenizer_file": "tokenizer.json"}
    model_input_names = ["input_ids"]
    model = BPE

    def __init__(
        self,
        vocab: str | dict[str, int] | None = None,
        merges: str | list[tuple[str, str]] | None = None,
        unk_token: str | AddedToken | None = EOS_TOKEN,
        bos_token: str | AddedToken = BOS_TOKEN,
        eos_token: str | AddedToken = EOS_TOKEN,
        pad_token: str | AddedToken | None = PAD_TOKEN,
        model_max_length: int = MODEL_MAX_LENGTH,
        **kwargs,
    ):
        for name, token in (("bos_token", bos_token), ("eos_token", eos_token)):
            if token is None:
                raise ValueError(f"{name} is None, but CLIP's text model needs it around each text: name a token")
        self.cache = {}  # adding tokens empties it while super() runs
        tokenizer_object, tokenizer_file = kwargs.pop("tokenizer_object", None), kwargs.pop("tokenizer_file", None)
        if vocab is not None:
            backend = Tokenizer(_model(vocab, merges, None if unk_token is None else str(unk_token)))
        elif tokenizer_object is not None:
            backend = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            backend = Tokenizer.from_file(str(tokenizer_file))
        else:
            raise ValueError(
                "HFCLIPTokenizer needs `vocab` and `merges`: load_vocabulary() of hf_clip.openai.vocabulary gives "
                "CLIP's, and from_pretrained loads a saved tokenizer"
            )
        self._tokenizer = _set_pipeline(backend)
        for setting in (
            "post_processor",
            "tokenizer_padding",
            "tokenizer_truncation",
            "_json_padding",
            "_json_truncation",
        ):
            kwargs.pop(setting, None)  # read from a tokenizer.json that may be a stock one's
        super().__init__(
            unk_token=unk_token, bos_token=bos_token, eos_token=eos_token, model_max_length=model_max_length, **kwargs
        )
        self._tokenizer.post_processor = processors.RobertaProcessing(
            (str(eos_token), self.eos_token_id),
            (str(bos_token), self.bos_token_id),
            trim_offsets=False,
            add_prefix_space=False,
        )
        # super() would make "!" an added token, and cut it out of "hello!!"
        if pad_token is not None and self._tokenizer.token_to_id(str(pad_token)) is None:
            self.add_special_tokens({"pad_token": pad_token})
        self.pad_token = self.init_kwargs["pad_token"] = pad_token
        self._build_caches()

    @classmethod
    def _from_pretrained(cls, resolved_vocab_files: dict[str, str | None], *args, **kwargs) -> "HFCLIPTokenizer":
        config_file = resolved_vocab_files.get("tokenizer_config_file")
        saved = json.loads(Path(config_file).read_text(encoding="utf-8")) if config_file else {}
        own_names = {base.__name__ for base in cls.__mro__ if issubclass(base, HFCLIPTokenizer)}
        if saved.get("tokenizer_class") not in own_names:
            # a stock repo pads with EOT, may ask for a mask and may know no limit; what the caller says still counts
            kwargs = {"pad_token": PAD_TOKEN, "model_input_names": cls.model_input_names, **kwargs}
            if saved.get("model_max_length", LARGE_INTEGER) >= LARGE_INTEGER:
                kwargs.setdefault("model_max_length", MODEL_MAX_LENGTH)
        return super()._from_pretrained(resolved_vocab_files, *args, **kwargs)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Return the named special tokens to save: without "!", which stock classes would cut out of texts."""
        tokens = super().special_tokens_map
        if tokens.get("pad_token") == PAD_TOKEN and PAD_TOKEN not in self.added_tokens_encoder:
            del tokens["pad_token"]
        return tokens

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt, an older form that holds no added tokens."""
        return tuple(self._tokenizer.model.save(str(save_directory), filename_prefix))

    def save_chat_templates(self, save_directory, tokenizer_config, *args, **kwargs) -> tuple[dict, list[str]]:
        """Take "!" out of the settings that are about to be saved, as in `special_tokens_map`."""
        if self.pad_token is not None and "pad_token" not in self.special_tokens_map:
            tokenizer_config = {name: value for name, value in tokenizer_config.items() if name != "pad_token"}
        return super().save_chat_templates(save_directory, tokenizer_config, *args, **kwargs)

    def pad(self, encoded_inputs, *args, **kwargs) -> BatchEncoding:
        """Pad encoded texts to one length, as data collators do; masks among them are padded too."""
        first = next(iter(encoded_inputs), {}) if isinstance(encoded_inputs, list | tuple) else encoded_inputs
        if "attention_mask" in first:
            kwargs.setdefault("return_attention_mask", True)
        return HFCLIPBatchEncoding(super().pad(encoded_inputs, *args, **kwargs).data)

    def __getstate__(self) -> dict:
        """Leave out what use has changed: `datasets` identifies a tokenizer by its pickled state."""
        return self.__dict__ | {"cache": {}, "deprecation_warnings": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._build_caches()

    def _build_caches(self) -> None:
        ids = {token: self._tokenizer.token_to_id(token) for token in (BOS_TOKEN, EOS_TOKEN)}
        special_ids = {token: token_id for token, token_id in ids.items() if token_id is not None}
        # `datasets` leaves out the attribute of this name where it hashes a tokenizer; keys end in split_special_tokens
        self.cache = {
            ("chunks", False): ChunkIds(self._tokenizer.model, WORDS_AND_SPECIAL, special_ids),
            ("chunks", True): ChunkIds(self._tokenizer.model, WORDS, {}),
        }

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        added = super()._add_tokens(new_tokens, special_tokens=special_tokens)
        for split_special_tokens in (False, True):
            self.cache.pop(("added tokens", split_special_tokens), None)
        return added

    def _find_added_tokens(self, split_special_tokens: bool) -> tuple[AddedTokens, AddedTokens]:
        """Return the added tokens to look for in a text as it is given, and in the cleaned text."""
        key = "added tokens", split_special_tokens
        found = self.cache.get(key)
        if found is None:
            base_size = self._tokenizer.get_vocab_size(with_added_tokens=False)
            tokens = {
                token_id: token
                for token_id, token in self.added_tokens_decoder.items()
                if token.content not in (BOS_TOKEN, EOS_TOKEN)  # the pattern finds those
                and not (token.content == self.pad_token and token_id < base_size)
                and not (token.special and split_special_tokens)
            }
            found = self.cache[key] = (
                AddedTokens({token_id: token for token_id, token in tokens.items() if not token.normalized}),
                AddedTokens({token_id: token for token_id, token in tokens.items() if token.normalized}),
            )
        return found

    def _pieces(self, text: str, split_special_tokens: bool) -> Pieces:
        """Cut `text` into words and whole tokens, in the text itself where cleaning leaves its words in place."""
        in_text, in_cleaned = self._find_added_tokens(split_special_tokens)
        chunk_ids = self.cache["chunks", split_special_tokens]

        def spans(view: str) -> Iterator[tuple[int, int, int | None]]:
            start = 0
            for stretch, token_id in in_cleaned.cut(view):
                if token_id is not None:
                    yield start, start + len(stretch), token_id
                else:
                    for word in chunk_ids.words.finditer(stretch):
                        yield start + word.start(), start + word.end(), chunk_ids.special_ids.get(word.group())
                start += len(stretch)

        def words(view: str, spans: list[tuple[int, int, int | None]]) -> list[str | int]:
            return [view[start:end] if token_id is None else token_id for start, end, token_id in spans]

        found: list[tuple[int, int, int | None]] = []
        view, aligned = "", True
        for stretch, token_id in in_text.cut(text):
            stretch_spans: list[tuple[int, int, int | None]] = [(0, len(stretch), token_id)]
            if token_id is None:
                lowered, cleaned = stretch.lower(), clean(stretch)
                stretch_spans, cleaned_spans = list(spans(lowered)), list(spans(cleaned))
                if len(lowered) == len(stretch) and words(lowered, stretch_spans) == words(cleaned, cleaned_spans):
                    stretch = lowered
                else:
                    stretch, stretch_spans, aligned = cleaned, cleaned_spans, False
            found += [(len(view) + start, len(view) + end, token_id) for start, end, token_id in stretch_spans]
            view += stretch
        return Pieces(view, found, aligned)

    def _pack_texts(self, texts: Sequence[str], split_special_tokens: bool) -> list[bytes]:
        """Return the packed ids of each text, without special tokens around them."""
        ids_of = self.cache["chunks", split_special_tokens].__getitem__
        if not any(tokens.ids for tokens in self._find_added_tokens(split_special_tokens)):
            return [b"".join(map(ids_of, clean_chunks(text))) for text in texts]
        rows = []
        for text in texts:
            view, spans, _ = self._pieces(text, split_special_tokens)
            rows.append(
                b"".join(ids_of(view[s:e]) if token_id is None else pack([token_id]) for s, e, token_id in spans)
            )
        return rows

    def _special_ids_around(self, add_special_tokens: bool) -> tuple[bytes, bytes]:
        encoding = self._tokenizer.post_process(ONE_TOKEN, None, add_special_tokens)
        place = encoding.special_tokens_mask.index(0)
        return pack(encoding.ids[:place]), pack(encoding.ids[place + 1 :])

    def _encoding(self, text: str | Sequence[str], split_special_tokens: bool, type_id: int) -> Encoding:
        """One sequence with nothing around it, from a text or from words, each of which is cleaned by itself."""
        if not isinstance(text, str):
            words = [self._encode_string(word, split_special_tokens, type_id, i) for i, word in enumerate(text)]
            return Encoding.merge(words, growing_offsets=False)
        return self._encode_string(text, split_special_tokens, type_id)

    def _encode_string(
        self, text: str, split_special_tokens: bool, type_id: int, word_index: int | None = None
    ) -> Encoding:
        view, spans, aligned = self._pieces(text, split_special_tokens)
        token_ids = iter([token_id for _, _, token_id in spans])
        characters = iter(view)

        def tokenize(word: str) -> list[Token]:
            token_id = next(token_ids)
            if token_id is not None:
                tokens = [Token(token_id, self._tokenizer.id_to_token(token_id) or "", (0, len(word.encode("utf-8"))))]
            else:
                tokens = self._tokenizer.model.tokenize(word if aligned else byte_symbols(word))
            return tokens if aligned else [Token(token.id, token.value, (0, 0)) for token in tokens]

        string = PreTokenizedString(text if aligned else "")
        if aligned:
            string.normalize(lambda normalized: normalized.map(lambda _: next(characters)))
        else:
            string.normalize(lambda normalized: normalized.append(view))
        string.split(lambda _, normalized: [normalized[start:end] for start, end, _ in spans])
        if aligned:
            BYTE_LEVEL.pre_tokenize(string)
        string.tokenize(tokenize)
        return string.to_encoding(type_id, word_index)

    def _get_padding_truncation_strategies(self, padding=False, truncation=None, max_length=None, **kwargs):
        padding, strategy, max_length, kwargs = super()._get_padding_truncation_strategies(
            padding=padding, truncation=truncation, max_length=max_length, **kwargs
        )
        if truncation is None and strategy == TruncationStrategy.DO_NOT_TRUNCATE:
            strategy = None  # not given, which `_encode_plus` must tell from False
        return padding, strategy, max_length, kwargs

    def _encode_plus(
        self,
        text: str | Sequence,
        text_pair: str | Sequence | None = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | TensorType | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        **kwargs,
    ) -> BatchEncoding:
        """Do what `__call__`, `encode` and `tokenize` come to, with their arguments."""
        samples, batched = _samples(text, text_pair, is_split_into_words)
        paired = any(pair is not None for _, pair in samples)
        tensor_type = None if return_tensors is None else TensorType(return_tensors)
        if tensor_type and padding_strategy == PaddingStrategy.DO_NOT_PAD and self.pad_token is not None:
            padding_strategy = PaddingStrategy.LONGEST
        fixed_width = padding_strategy == PaddingStrategy.MAX_LENGTH
        limit = max_length if fixed_width else self.model_max_length
        if truncation_strategy not in (None, TruncationStrategy.DO_NOT_TRUNCATE):
            too_long = TooLong.CUT
        elif truncation_strategy is None and tensor_type and limit < LARGE_INTEGER:
            too_long = TooLong.CUT_AND_WARN
            truncation_strategy, max_length = TruncationStrategy.LONGEST_FIRST, limit
        else:
            too_long = TooLong.REFUSE if tensor_type and fixed_width else TooLong.KEEP_AND_WARN
            truncation_strategy = TruncationStrategy.DO_NOT_TRUNCATE
        columns = {
            "input_ids": True,
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        request = Request(
            columns={name for name, on in columns.items() if (name in self.model_input_names if on is None else on)},
            tensor_type=tensor_type,
            add_special_tokens=add_special_tokens,
            split_special_tokens=self.split_special_tokens if split_special_tokens is None else split_special_tokens,
            overflowing=return_overflowing_tokens,
            too_long=too_long,
            limit=int(limit or 0),
            truncation=truncation_strategy,
            truncation_side=self.truncation_side,
            stride=stride,
            max_length=max_length,
            padding=padding_strategy,
            padding_side=self.padding_side if padding_side is None else padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
            verbose=verbose,
        )
        special = self.num_special_tokens_to_add(pair=paired) if add_special_tokens else 0
        if request.most_tokens is not None and request.most_tokens < special:
            raise ValueError(f"max_length={request.most_tokens} has no room for {special} special tokens")

        if paired or is_split_into_words or request.overflowing or request.columns - {"input_ids", "attention_mask"}:
            batch = self._encode_samples(samples, request)
        else:
            batch = self._encode_texts([text for text, _ in samples], request)
        if not batched and tensor_type is None and not request.overflowing:
            data = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in batch.items()}
            batch = HFCLIPBatchEncoding(data, batch.encodings, n_sequences=batch.n_sequences)
        return batch

    def _encode_texts(self, texts: list[str], request: Request) -> BatchEncoding:
        """Single texts to ids and masks, without an `Encoding` per text unless one is looked at."""
        rows = self._pack_texts(texts, request.split_special_tokens)
        start, end = self._special_ids_around(request.add_special_tokens)
        around = len(start) + len(end)
        lengths = (np.fromiter(map(len, rows), np.int64, len(rows)) + around) // ID_BYTES
        self._check_lengths(texts, lengths, request)
        if request.most_tokens is not None and lengths.max(initial=0) > request.most_tokens:
            room = request.most_tokens * ID_BYTES - around
            if request.truncation_side == "right":
                rows = [row[:room] for row in rows]
            else:
                rows = [row[max(0, len(row) - room) :] for row in rows]
            lengths = np.minimum(lengths, request.most_tokens)

        width = request.width(int(lengths.max(initial=around // ID_BYTES)))
        padding = pack([self.pad_token_id] * width)
        pad_right = request.padding_side == "right"
        if pad_right:
            rows = [b"".join((start, row, end, padding[len(row) + around :])) for row in rows]
        else:
            rows = [b"".join((padding[len(row) + around :], start, row, end)) for row in rows]

        data = {}
        if width and request.tensor_type in (TensorType.PYTORCH, TensorType.NUMPY):
            as_tensor = torch.from_numpy if request.tensor_type == TensorType.PYTORCH else np.asarray
            data["input_ids"] = as_tensor(np.frombuffer(bytearray().join(rows), np.int64).reshape(len(rows), width))
            if "attention_mask" in request.columns:
                places = np.arange(width) if pad_right else np.arange(width)[::-1]
                data["attention_mask"] = as_tensor((places < lengths[:, None]).astype(np.int64))
        else:
            data["input_ids"] = [unpack(row) for row in rows]
            if "attention_mask" in request.columns:
                masks = ([1] * n + [0] * (width - n) for n in lengths.tolist())
                data["attention_mask"] = [mask if pad_right else mask[::-1] for mask in masks]

        def encode(text: str) -> Encoding:
            encodings, _ = self._cut_encodings([(text, None)], request)
            return self._pad_encodings(encodings, width, request.padding_side)[0]

        return HFCLIPBatchEncoding(data, LazyEncodings(texts, encode), request.tensor_type, n_sequences=1)

    def _encode_samples(self, samples: list[tuple], request: Request) -> BatchEncoding:
        """Texts, pairs or words to whatever an `Encoding` has."""
        if "offset_mapping" in request.columns:
            self._check_offsets(samples, request.split_special_tokens)
        encodings, lengths = self._cut_encodings(samples, request)
        self._check_lengths([text for text, _ in samples], np.array(lengths), request)
        width = request.width(max(map(len, encodings), default=0))
        encodings = self._pad_encodings(encodings, width, request.padding_side)
        parts = [(encoding, *encoding.overflowing) if request.overflowing else (encoding,) for encoding in encodings]
        encodings = [encoding for sample in parts for encoding in sample]
        data = {
            name: [getattr(encoding, attribute) for encoding in encodings]
            for name, attribute in ENCODING_ATTRIBUTES.items()
            if name in request.columns
        }
        if "length" in request.columns:
            data["length"] = [len(encoding) for encoding in encodings]
        if request.overflowing:
            data["overflow_to_sample_mapping"] = [number for number, sample in enumerate(parts) for _ in sample]
        return HFCLIPBatchEncoding(data, encodings, request.tensor_type)

    def _cut_encodings(self, samples: list[tuple], request: Request) -> tuple[list[Encoding], list[int]]:
        """Samples (text, pair or None) cut and with special tokens, not padded; and their lengths before the cut."""
        # threads share `_tokenizer`, so what one call cuts to is set on a backend of its own
        cutter = Tokenizer(BPE())
        cutter.post_processor = self._tokenizer.post_processor
        if request.most_tokens is not None:
            cutter.enable_truncation(
                request.most_tokens,
                stride=request.stride,
                strategy=request.truncation.value,
                direction=request.truncation_side,
            )
        encodings, lengths = [], []
        for text, pair in samples:
            first = self._encoding(text, request.split_special_tokens, 0)
            second = None if pair is None else self._encoding(pair, request.split_special_tokens, 1)
            special = self.num_special_tokens_to_add(pair=pair is not None) if request.add_special_tokens else 0
            lengths.append(len(first) + len(second or ()) + special)
            encodings.append(cutter.post_process(first, second, request.add_special_tokens))
        return encodings, lengths

    def _pad_encodings(self, encodings: list[Encoding], width: int, side: str) -> list[Encoding]:
        if width:
            for encoding in encodings:
                encoding.pad(
                    width,
                    direction=side,
                    pad_id=self.pad_token_id,
                    pad_type_id=self.pad_token_type_id,
                    pad_token=self.pad_token,
                )
        return encodings

    def _check_lengths(self, texts: list, lengths: np.ndarray, request: Request) -> None:
        too_long = np.flatnonzero(lengths > request.limit)
        if request.too_long == TooLong.CUT or not len(too_long):
            return
        first = int(too_long[0])
        message = f"text {first} of {len(texts)} ({_shorten(texts[first])}) has {lengths[first]} tokens"
        if len(too_long) > 1:
            message += f" (and {len(too_long) - 1} more are too long)"
        if request.too_long == TooLong.REFUSE:
            advice = f"over max_length={request.limit}: pass truncation=True to cut it"
            raise TextTooLongError(message, advice, first, int(lengths[first]), request.limit)
        if not request.verbose:
            return
        if request.too_long == TooLong.CUT_AND_WARN:
            logger.warning(f"{message} and was cut to {request.limit}: pass truncation=True if that is meant")
        elif not self.deprecation_warnings.get(WARNED_OF_LENGTH):
            self.deprecation_warnings[WARNED_OF_LENGTH] = True
            logger.warning(f"{message}, over the {request.limit} that the model takes: pass truncation=True to cut it")

    def _check_offsets(self, samples: list[tuple], split_special_tokens: bool) -> None:
        for sample in samples:
            for text in sample:
                for string in [text] if isinstance(text, str) else text or ():
                    if not self._pieces(string, split_special_tokens).aligned:
                        raise OffsetsUnavailableError(
                            f"cleaning changes {_shorten(string)} to {_shorten(clean(string))}, so its tokens have no "
                            "offsets in the text given: clean it first, or leave return_offsets_mapping out"
                        )

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text as the original's `decode`; a space follows an added token, which has no `</w>`."""
        added = self.added_tokens_encoder.keys() - {BOS_TOKEN, EOS_TOKEN}
        text = ""
        for is_added, run in groupby(tokens, key=added.__contains__):
            if is_added:
                text += "".join(token + " " for token in run)
            else:
                symbols = bytes(BYTE_OF_CHARACTER[character] for token in run for character in token)
                text += symbols.decode("utf-8", errors="replace").replace(END_OF_WORD, " ")
        return text

    def _decode(
        self,
        token_ids: int | list[int] | dict,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces=None,
        **kwargs,
    ) -> str:
        if isinstance(token_ids, dict | BatchEncoding):
            token_ids = token_ids["input_ids"]
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        for token_id in token_ids:
            if token_id not in range(2**32) or self._tokenizer.id_to_token(token_id) is None:
                raise ValueError(f"token id {token_id} is not in the vocabulary of {len(self)} tokens")
        if skip_special_tokens:
            token_ids = self._without_special_tokens(token_ids)
        text = self.convert_tokens_to_string(self.convert_ids_to_tokens(token_ids))
        return text.strip() if skip_special_tokens else text

    def _without_special_tokens(self, token_ids: list[int]) -> list[int]:
        """Padding goes from the ends only: inside a text, id 0 is a "!" that another symbol follows."""
        start, end = 0, len(token_ids)
        while end > 0 and token_ids[end - 1] == self.pad_token_id:
            end -= 1
        while start < end and token_ids[start] == self.pad_token_id:
            start += 1
        special = set(self.all_special_ids) - ({self.pad_token_id} - set(self.added_tokens_decoder))
        return [token_id for token_id in token_ids[start:end] if token_id not in special]


def _model(vocab: str | dict[str, int], merges: str | list[tuple[str, str]] | None, unk_token: str | None) -> BPE:
    try:
        if isinstance(vocab, str):
            vocab, merges = BPE.read_file(vocab, str(merges))
        return BPE(
            vocab, merges or [], unk_token=unk_token, continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD
        )
    except Exception as error:  # the class that `tokenizers` raises
        raise ValueError(f"`vocab` and `merges` make no byte-pair vocabulary: {error}") from error


def _set_pipeline(backend: Tokenizer) -> Tokenizer:
    """Give `backend` the nearest to CLIP's pipeline that `tokenizers` can run by itself, and save."""
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    words = Regex(f"{SPECIAL}|(?i:{CONTRACTIONS})|{RUNS}")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), BYTE_LEVEL]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END_OF_WORD, " ")])
    backend.no_padding()
    backend.no_truncation()
    return backend


def _shorten(value: Any, most: int = 80) -> str:
    text = regex.sub(r"\n\s*", " ", repr(value))  # arrays
    return text if len(text) <= most else text[:most] + "..."


def _samples(
    text: str | Sequence, text_pair: str | Sequence | None, is_split_into_words: bool
) -> tuple[list[tuple], bool]:
    """Return the (text, pair or None) that `__call__` was given, and whether they were a batch."""

    def is_sequence(value) -> bool:
        return isinstance(value, list | tuple)

    def is_text(value) -> bool:
        if is_split_into_words:
            return is_sequence(value) and all(isinstance(word, str) for word in value)
        return isinstance(value, str)

    batched = is_sequence(text) and (not is_split_into_words or (len(text) > 0 and is_sequence(text[0])))
    if not batched:
        samples = [(text, text_pair or None)]
    elif text_pair is None:
        samples = [tuple(item) if is_sequence(item) and not is_text(item) else (item, None) for item in text]
    elif is_sequence(text_pair) and len(text) == len(text_pair):
        samples = list(zip(text, text_pair, strict=True))
    else:
        count = f"{len(text_pair)} of them" if is_sequence(text_pair) else f"a {type(text_pair).__name__}"
        raise ValueError(f"text_pair must have one text for each of the {len(text)} in text, got {count}")
    for index, sample in enumerate(samples):
        if not (len(sample) == 2 and is_text(sample[0]) and (sample[1] is None or is_text(sample[1]))):
            what = "a list of str, as is_split_into_words=True says" if is_split_into_words else "a str"
            got = _shorten(sample if sample[1:] != (None,) else sample[0])
            hint = " (images go in `images=`)" if hasattr(sample[0], "__array_interface__") else ""
            raise ValueError(f"a text must be {what} (a batch: a list of those); text {index} is {got}{hint}")
    return samples, batched


__all__ = ["HFCLIPTokenizer", "OffsetsUnavailableError", "TextTooLongError"]
