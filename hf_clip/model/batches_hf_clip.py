"""The batches that the tokenizer and the processor return."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Encoding
from transformers import BatchEncoding, BatchFeature

NO_MASK = (
    "the batch has no attention_mask, because CLIP's text model is causal and pools at the first EOT, so padding after "
    "it changes nothing: leave the mask out, or pass return_attention_mask=True to the tokenizer to get one"
)


class ExplainsMissingMask:
    """Mixin for batches whose error for a missing `attention_mask` explains the absence."""

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
    """A `BatchEncoding` whose error for a missing `attention_mask` explains the absence."""


class HFCLIPBatchFeature(ExplainsMissingMask, BatchFeature):
    """A `BatchFeature` whose error for a missing `attention_mask` explains the absence."""


class LazyEncodings(Sequence[Encoding]):
    """The `Encoding`s of a batch (tokens, words, offsets), computed when the first is looked at."""

    def __init__(self, size: int, encode: Callable[[], list[Encoding]]):
        self.size, self.encode = size, encode

    @cached_property
    def encodings(self) -> list[Encoding]:
        return self.encode()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | slice) -> Any:
        return self.encodings[index]

    def __reduce__(self) -> tuple:
        return list, (self.encodings,)


__all__ = ["HFCLIPBatchEncoding", "HFCLIPBatchFeature", "LazyEncodings"]
