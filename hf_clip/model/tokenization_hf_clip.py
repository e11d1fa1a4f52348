"""CLIP's byte-level BPE tokenizer: `HFCLIPTokenizer` returns the ids of the original's `SimpleTokenizer` for any text.

Single texts take a packed path without an object per token. Everything else (pairs, words, offsets, added tokens) goes
through transformers, on a backend that cleans and splits in Python.
"""

import copy
import json
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tokenizers import AddedToken, Encoding, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

try:
    from transformers import (
        BatchEncoding,
        PreTrainedTokenizerFast,  # noqa: F401 (diffusers loads a class by a base class that its module names)
        TokenizersBackend,
    )
except ImportError as error:
    from .requirement_hf_clip import older_transformers

    raise older_transformers() from error
from transformers.tokenization_utils_base import LARGE_INTEGER, TruncationStrategy
from transformers.utils import PaddingStrategy, TensorType, logging

from .batches_hf_clip import HFCLIPBatchEncoding, LazyEncodings
from .bpe_hf_clip import (
    BOS_TOKEN,
    BYTE_OF_CHARACTER,
    END_OF_WORD,
    EOS_TOKEN,
    WORDS,
    WORDS_AND_SPECIAL,
    ChunkIds,
    WordTokenizer,
    byte_pair_model,
    pack,
    set_pipeline,
)
from .packed_texts_hf_clip import (
    MODEL_MAX_LENGTH,
    PAD_TOKEN,
    PackedTexts,
    TextTooLongError,
    describe_too_long,
    shorten,
)
from .text_cleaning_hf_clip import CleaningNormalizer, clean, encodable, keeps_places

# named below transformers' own logger, whose verbosity it obeys
logger = logging.get_logger(f"transformers.{__name__}")

# columns of a batch that only `Encoding`s hold
ENCODING_COLUMNS = ("token_type_ids", "overflowing_tokens", "special_tokens_mask", "offsets_mapping", "length")
WARNED_OF_LENGTH = "sequence-length-is-longer-than-the-specified-maximum"  # where the base class notes it
# what a post-processor puts before and after a text is what it puts around this token
ONE_TOKEN = Tokenizer(BPE({"a": 0}, [])).encode("a")


Lengths: TypeAlias = Sequence[int] | np.ndarray


class OffsetsUnavailableError(ValueError):
    """Offsets were asked for a text that cleaning changes (mojibake, HTML, Unicode normal form)."""


class TooLong(Enum):
    """The four ways to treat a text that has more tokens than fit."""

    CUT = "truncation=True"
    CUT_AND_WARN = "truncation not given, tensors asked for"
    KEEP_AND_WARN = "no truncation"
    REFUSE = "truncation=False, but tensors of a fixed width asked for"


class HFCLIPTokenizer(TokenizersBackend):
    """Tokenize texts for CLIP: the ids of the original's `clip.tokenize` for every `str`, from any CLIP repository.

    Texts are cleaned in Python (ftfy, HTML entities, spaces, lower case) and split by the original's own pattern; only
    the merges run in `tokenizers`. `backend_tokenizer`, which is what tokenizer.json holds for other programs, is the
    nearest pipeline that `tokenizers` can express by itself: it lacks ftfy and HTML.

    Where it differs from the stock `CLIPTokenizer`:

    - `model_input_names` is `["input_ids"]`: attention is causal and pooled at the first EOT, so no mask is needed. Ask
      for one with `return_attention_mask=True`. Padding is id 0, as in the original.
    - `return_tensors` always gives a rectangle: without `padding`, rows are padded to the longest.
    - The model cannot read a text of over `model_max_length` tokens. `truncation=True` cuts it and keeps EOT last.
      Where `truncation` is not given, `return_tensors` cuts it with a warning (pipelines cannot pass `truncation`) and
      plain lists keep all ids. `truncation=False` never cuts: rows are then too long for the model, and if
      `padding="max_length"` and `return_tensors` ask for a fixed width, `TextTooLongError` is raised.
    - `decode` equals the original's, special tokens and last space included; `skip_special_tokens=True` drops special
      tokens, padding and outer spaces.
    - `return_offsets_mapping` raises `OffsetsUnavailableError` for a text that cleaning changes beyond case and spaces;
      in `encodings`, all offsets of such a text are empty spans.
    - Special tokens written in a text count where the original's pattern finds them, so not in "!<|endoftext|>";
      `split_special_tokens=True` makes them ordinary text.

    Lone surrogates become U+FFFD (by ftfy), as in the original. Encoded words are cached, in at most 32 MiB.

    Args:
        vocab: token -> id, or the path of a vocab.json. `hf_clip.openai.vocabulary.load_vocabulary` gives CLIP's.
        merges: pairs of tokens in order of priority, or the path of a merges.txt.

    Raises:
        TextTooLongError: A text has more tokens than a fixed width, and `truncation=False` forbids cutting it.
        OffsetsUnavailableError: Offsets are asked for a text that cleaning changes beyond case and spaces.
        ValueError: A text is not a `str`, or `vocab` and `merges` do not fit together.

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
        tokenizer_object, tokenizer_file = kwargs.pop("tokenizer_object", None), kwargs.pop("tokenizer_file", None)
        if vocab is not None:
            backend = Tokenizer(byte_pair_model(vocab, merges, None if unk_token is None else str(unk_token)))
        elif tokenizer_object is not None:
            backend = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            backend = Tokenizer.from_file(str(tokenizer_file))
        else:
            raise ValueError(
                "HFCLIPTokenizer needs `vocab` and `merges`: load_vocabulary() of hf_clip.openai.vocabulary gives "
                "CLIP's, and from_pretrained loads a saved tokenizer"
            )
        self._tokenizer = set_pipeline(backend)
        # settings of a tokenizer.json that may be a stock one's
        baked_in = "post_processor", "tokenizer_padding", "tokenizer_truncation", "_json_padding", "_json_truncation"
        kwargs = {name: value for name, value in kwargs.items() if name not in baked_in}
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
        if not any(resolved_vocab_files.get(name) for name in ("tokenizer_file", "vocab_file")):
            raise OSError(
                f"{args[0] if args else 'the folder'} has no tokenizer.json or vocab.json: load the tokenizer of the "
                "model that it was made from"
            )
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
        """The named special tokens to save, without "!", which stock classes would cut out of texts."""
        tokens = super().special_tokens_map
        if tokens.get("pad_token") == PAD_TOKEN and PAD_TOKEN not in self.added_tokens_encoder:
            del tokens["pad_token"]
        return tokens

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt, an older format without added tokens."""
        return tuple(self._tokenizer.model.save(str(save_directory), filename_prefix))

    def save_chat_templates(self, save_directory, tokenizer_config, *args, **kwargs) -> tuple[dict, list[str]]:
        """Remove "!" from the settings to be saved, as `special_tokens_map` does."""
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
        """Return the state without caches: `datasets` identifies a tokenizer by its pickled state."""
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

    def _tokens_to_find(self) -> list[AddedToken]:
        """List the user's added tokens, by id. The word pattern finds BOS and EOS, and "!" as padding stays text."""
        base_size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        in_base = {BOS_TOKEN, EOS_TOKEN, self.pad_token}
        added = sorted(self._tokenizer.get_added_tokens_decoder().items())
        return [token for token_id, token in added if token_id >= base_size or token.content not in in_base]

    def _exact_backend(self, split_special_tokens: bool) -> Tokenizer:
        """Build a backend that cleans and splits in Python, for one call.

        Threads share `_tokenizer`, whereas transformers sets padding and truncation on the backend that it calls.
        """
        chunk_ids = self.cache["chunks", split_special_tokens]
        backend = Tokenizer(self._tokenizer.model)  # shares the vocabulary
        backend.normalizer = normalizers.Normalizer.custom(CleaningNormalizer())
        backend.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(WordTokenizer(chunk_ids))
        backend.post_processor = self._tokenizer.post_processor
        backend.add_tokens(self._tokens_to_find())
        return backend

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
        is_split_into_words: bool = False,
        return_tensors: str | TensorType | None = None,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        **kwargs,
    ) -> BatchEncoding:
        """Encode the texts of `__call__`, `encode` and `tokenize`, which pass their arguments on."""
        samples, batched = _samples(text, text_pair, is_split_into_words)
        tensor_type = None if return_tensors is None else TensorType(return_tensors)
        if tensor_type and padding_strategy == PaddingStrategy.DO_NOT_PAD and self.pad_token is not None:
            padding_strategy = PaddingStrategy.LONGEST
        fixed_width = padding_strategy == PaddingStrategy.MAX_LENGTH
        limit = int((max_length if fixed_width else self.model_max_length) or 0)
        if truncation_strategy not in (None, TruncationStrategy.DO_NOT_TRUNCATE):
            too_long = TooLong.CUT
        elif truncation_strategy is None and tensor_type and limit < LARGE_INTEGER:
            too_long = TooLong.CUT_AND_WARN
            truncation_strategy, max_length = TruncationStrategy.LONGEST_FIRST, limit
        else:
            too_long = TooLong.REFUSE if tensor_type and fixed_width else TooLong.KEEP_AND_WARN
            truncation_strategy = TruncationStrategy.DO_NOT_TRUNCATE
        special = add_special_tokens * self.num_special_tokens_to_add(any(pair is not None for _, pair in samples))
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length < special:
            raise ValueError(f"max_length={max_length} has no room for {special} special tokens")

        def check(lengths: Lengths) -> None:
            self._check_lengths([text for text, _ in samples], lengths, limit, too_long, verbose)

        options = kwargs | {
            "add_special_tokens": add_special_tokens,
            "padding_strategy": padding_strategy,
            "truncation_strategy": truncation_strategy,
            "max_length": max_length,
            "is_split_into_words": is_split_into_words,
            "return_tensors": tensor_type,
            "split_special_tokens": self.split_special_tokens if split_special_tokens is None else split_special_tokens,
        }
        if samples and self._needs_encodings(samples, options):
            batch = self._encode_with_backend(samples, options, None if too_long == TooLong.CUT else check)
        else:
            batch = self._encode_texts([text for text, _ in samples], options, check)
        if not batched and tensor_type is None and not kwargs.get("return_overflowing_tokens"):
            data = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in batch.items()}
            batch = HFCLIPBatchEncoding(data, batch.encodings, n_sequences=batch.n_sequences)
        return batch

    def _needs_encodings(self, samples: list[tuple], options: dict[str, Any]) -> bool:
        """Return True for pairs, words, added tokens, and columns that packed ids do not hold."""
        return (
            any(self._returns(column, options) for column in ENCODING_COLUMNS)
            or options["is_split_into_words"]
            or any(pair is not None for _, pair in samples)
            or any(token.content not in (BOS_TOKEN, EOS_TOKEN) for token in self._tokens_to_find())
        )

    def _returns(self, column: str, options: dict[str, Any]) -> bool:
        asked = options.get(f"return_{column}")
        return column in self.model_input_names if asked is None else asked

    def _encode_with_backend(
        self,
        samples: list[tuple],
        options: dict[str, Any],
        check: Callable[[Lengths], None] | None = None,
    ) -> HFCLIPBatchEncoding:
        """Encode (text, pair or None) as transformers does, with the original's cleaning and splitting."""
        if options.get("return_offsets_mapping"):
            _check_offsets(samples)

        def prepare(text: str | Sequence[str]) -> str | list[str]:
            return encodable(text) if isinstance(text, str) else [encodable(word) for word in text]

        texts = [prepare(text) if pair is None else (prepare(text), prepare(pair)) for text, pair in samples]

        def encode(**changes) -> BatchEncoding:
            twin = object.__new__(type(self))
            twin.__dict__ = self.__dict__ | {"_tokenizer": self._exact_backend(options["split_special_tokens"])}
            return super(HFCLIPTokenizer, twin)._encode_plus(texts, **(options | {"verbose": False} | changes))

        if check is not None:
            # uncut rows tell how long the texts are; where they are too long for a tensor, lists still hold them
            uncut = {"truncation_strategy": TruncationStrategy.DO_NOT_TRUNCATE, "return_tensors": None}
            batch = encode(**uncut)
            check([sum(encoding.attention_mask) for encoding in batch.encodings])
        if check is None or options | uncut != options:
            batch = encode()
        return HFCLIPBatchEncoding(batch.data, batch.encodings, n_sequences=batch.n_sequences)

    def _encode_texts(
        self, texts: list[str], options: dict[str, Any], check: Callable[[Lengths], None]
    ) -> HFCLIPBatchEncoding:
        """Encode single texts to packed ids and masks, without an `Encoding` for each unless one is looked at."""
        chunk_ids = self.cache["chunks", options["split_special_tokens"]]
        packed = PackedTexts.encode(texts, chunk_ids, *self._special_ids_around(options["add_special_tokens"]))
        check(packed.lengths)
        if options["truncation_strategy"] != TruncationStrategy.DO_NOT_TRUNCATE:
            packed = packed.cut(options["max_length"], self.truncation_side == "right")

        width = _width(packed.longest, options)
        pad_right = (options.get("padding_side") or self.padding_side) == "right"
        data, tensor_type = {}, options["return_tensors"]
        returns_mask = self._returns("attention_mask", options)
        if width and tensor_type in (TensorType.PYTORCH, TensorType.NUMPY):
            as_tensor = torch.from_numpy if tensor_type == TensorType.PYTORCH else np.asarray
            data["input_ids"] = as_tensor(packed.matrix(width, self.pad_token_id, pad_right))
            if returns_mask:
                places = np.arange(width) if pad_right else np.arange(width)[::-1]
                data["attention_mask"] = as_tensor((places < packed.lengths[:, None]).astype(np.int64))
        else:
            data["input_ids"] = packed.lists(width, self.pad_token_id, pad_right)
            if returns_mask:
                masks = ([1] * n + [0] * (width - n) for n in packed.lengths.tolist())
                data["attention_mask"] = [mask if pad_right else mask[::-1] for mask in masks]

        def encodings() -> list[Encoding]:
            return self._encode_with_backend(
                [(text, None) for text in texts], options | {"return_tensors": None}
            ).encodings

        return HFCLIPBatchEncoding(data, LazyEncodings(len(texts), encodings), tensor_type, n_sequences=1)

    def _special_ids_around(self, add_special_tokens: bool) -> tuple[bytes, bytes]:
        encoding = self._tokenizer.post_process(ONE_TOKEN, None, add_special_tokens)
        place = encoding.special_tokens_mask.index(0)
        return pack(encoding.ids[:place]), pack(encoding.ids[place + 1 :])

    def _check_lengths(self, texts: list, lengths: Lengths, limit: int, too_long: TooLong, verbose: bool) -> None:
        """Refuse texts with more than `limit` tokens, or warn of them; the message names the first."""
        found = None if too_long == TooLong.CUT else describe_too_long(texts, lengths, limit)
        if found is None:
            return
        message, first = found
        if too_long == TooLong.REFUSE:
            advice = f"over max_length={limit}: pass truncation=True to cut it"
            raise TextTooLongError(message, advice, first, int(lengths[first]), limit)
        if not verbose:
            return
        if too_long == TooLong.CUT_AND_WARN:
            logger.warning(f"{message} and was cut to {limit}: pass truncation=True if that is meant")
        elif not self.deprecation_warnings.get(WARNED_OF_LENGTH):
            self.deprecation_warnings[WARNED_OF_LENGTH] = True
            logger.warning(f"{message}, over the {limit} that the model takes: pass truncation=True to cut it")

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


def _width(longest: int, options: dict[str, Any]) -> int:
    """Return the length that rows are padded to, given the longest; 0 for no padding."""
    if options["padding_strategy"] == PaddingStrategy.DO_NOT_PAD:
        return 0
    width = longest if options["padding_strategy"] == PaddingStrategy.LONGEST else options["max_length"]
    multiple = options.get("pad_to_multiple_of") or 1
    return -(-(width or 0) // multiple) * multiple


def _check_offsets(samples: list[tuple]) -> None:
    texts = (text for sample in samples for text in sample if text is not None)
    for string in (string for text in texts for string in ([text] if isinstance(text, str) else text)):
        if not keeps_places(string):
            raise OffsetsUnavailableError(
                f"cleaning changes {shorten(string)} to {shorten(clean(string))}, so its tokens have no offsets in "
                "the text given: clean it first, or leave return_offsets_mapping out"
            )


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
            got = shorten(sample if sample[1:] != (None,) else sample[0])
            hint = " (images go in `images=`)" if hasattr(sample[0], "__array_interface__") else ""
            raise ValueError(f"a text must be {what} (a batch: a list of those); text {index} is {got}{hint}")
    return samples, batched


__all__ = ["HFCLIPTokenizer", "OffsetsUnavailableError"]
