"""Embeddings of many texts."""

import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from .features import Array, Model, check_list, collect, features, on_cpu, tensor_type
from .numpy_texts import check_length

# texts of up to SHORT tokens, or lengths within a factor of LIKE, share a batch: padding costs less than one more batch
SHORT, LIKE = 16, 1.5
# 256 prompts of SHORT tokens
BATCH_TOKENS = 4096
# transformers' own tokenizers keep the padding and truncation of a call until the next one
_TOKENIZING = threading.Lock()
_T = TypeVar("_T", bound=Hashable)


def embed_texts(
    model: Model,
    processor: Any,
    texts: Sequence[str],
    *,
    batch_tokens: int = BATCH_TOKENS,
    normalize: bool = True,
    deterministic: bool = False,
    **tokenizer_kwargs,
) -> Array:
    """Embed any number of texts, each of them once.

    Texts of like length share a batch, and none is padded to the whole context.

    Args:
        model: A CLIP, of this package or transformers' own, or its text tower with projection; in evaluation mode. Or
            an exported CLIP, which gives NumPy arrays.
        processor: Its processor, or a tokenizer.
        texts: The texts; equal ones get equal rows.
        batch_tokens: The most tokens of a batch, padding included; one longer text is a batch of its own.
        normalize: Scale embeddings to length 1.
        deterministic: Compute each text alone, without padding and on one thread, several at a time: its bits then
            depend neither on the other texts and their order nor on the number of threads.
        **tokenizer_kwargs: Passed to the tokenizer, such as `truncation=True`.

    Returns:
        Embeddings (N, projection_dim), float32 on the CPU.

    Raises:
        ValueError: There are no texts, or one is too long and `truncation` is not given.

    Example:
        >>> embeds = embed_texts(model, processor, ["a cat", "two dogs"])  # (2, projection_dim)
    """
    check_list("texts", texts)
    tokenizer = getattr(processor, "tokenizer", processor)
    unique = list(dict.fromkeys(texts))
    ids = _tokenize(tokenizer, unique, verbose=False)["input_ids"]
    lengths = dict(zip(unique, map(len, ids), strict=True))
    unique.sort(key=lengths.__getitem__)
    if "truncation" not in tokenizer_kwargs:
        check_length(unique[-1], lengths[unique[-1]], tokenizer.model_max_length)
    tokenizer_kwargs = {"padding": True, "return_tensors": tensor_type(model), **tokenizer_kwargs}

    groups = [list(same) for _, same in groupby(unique, lengths.__getitem__)] if deterministic else [unique]
    batches = (
        _tokenize(tokenizer, batch, **tokenizer_kwargs)
        for group in groups
        for batch in _of_like_length(group, lengths, batch_tokens)
    )
    return _embed_each_once(model, batches, unique, texts, normalize, deterministic)


def token_ids(processor: Any, texts: Sequence[str], truncation: bool = False) -> list[list[int]]:
    """Return the token ids of each text, start and end included, however many they are unless truncated."""
    return _tokenize(getattr(processor, "tokenizer", processor), list(texts), truncation=truncation, verbose=False)[
        "input_ids"
    ]


def embed_token_ids(
    model: Model,
    processor: Any,
    ids: Sequence[Sequence[int]],
    *,
    batch_tokens: int = BATCH_TOKENS,
    normalize: bool = True,
) -> Array:
    """Embed texts that are tokenized already, as `embed_texts` embeds texts.

    Args:
        model: As in `embed_texts`.
        processor: As in `embed_texts`.
        ids: For each text its token ids, start and end included, at most as many as the model reads.
        batch_tokens: The most tokens of a batch, padding included.
        normalize: Scale embeddings to length 1.

    Returns:
        Embeddings (N, projection_dim), float32 on the CPU.
    """
    check_list("ids", ids)
    tokenizer, rows = getattr(processor, "tokenizer", processor), [tuple(each) for each in ids]
    unique = sorted(dict.fromkeys(rows), key=len)
    lengths, kind = {each: len(each) for each in unique}, tensor_type(model)
    batches = (_pad(tokenizer, batch, kind) for batch in _of_like_length(unique, lengths, batch_tokens))
    return _embed_each_once(model, batches, unique, rows, normalize)


def _embed_each_once(
    model: Model,
    batches: Iterable[Mapping[str, Array]],
    unique: Sequence[Hashable],
    wanted: Sequence[Hashable],
    normalize: bool,
    deterministic: bool = False,
) -> Array:
    """Compute the embeddings of `unique`, which `batches` have as inputs, and return a row for each of `wanted`."""
    computed = (on_cpu(features(model, "text", batch, normalize, deterministic)) for batch in batches)
    embeds = collect(computed, "text", len(unique))
    rows = {text: row for row, text in enumerate(unique)}
    return embeds[[rows[text] for text in wanted]]


def _pad(tokenizer: Any, ids: list[tuple[int, ...]], kind: str) -> Mapping[str, Array]:
    with _TOKENIZING:
        return tokenizer.pad({"input_ids": [list(each) for each in ids]}, return_tensors=kind)


def _tokenize(tokenizer: Any, texts: list[str], **tokenizer_kwargs) -> Mapping[str, Any]:
    """Call the tokenizer, in one thread at a time."""
    with _TOKENIZING:
        return tokenizer(texts, **tokenizer_kwargs)


def _of_like_length(texts: list[_T], lengths: Mapping[_T, int], batch_tokens: int) -> Iterator[list[_T]]:
    """Split `texts`, sorted by length, into batches of at most `batch_tokens` with padding, or of one text.

    The longest text of a batch has at most SHORT tokens, or LIKE times as many as its shortest.
    """
    batch: list[_T] = []
    for text in texts:
        full = (len(batch) + 1) * lengths[text] > batch_tokens
        if batch and (full or lengths[text] > max(SHORT, LIKE * lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(text)
    yield batch


__all__ = ["embed_texts", "embed_token_ids", "token_ids"]
