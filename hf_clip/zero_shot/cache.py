"""A bounded dictionary of class embeddings, for threads that share one pipeline."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any

import torch

MAX_LABEL_SETS = 16


def cache_key(
    model: torch.nn.Module,
    tokenizer: Any,
    labels: Sequence[Any],
    templates: Sequence[str],
    tokenizer_kwargs: dict[str, Any],
) -> Hashable:
    """Return the inputs of class embeddings as a key: texts, tokenizer, and each weight with its version.

    A weight that is replaced, moved, cast or written to gives another key. One written through `.data` does not, as
    PyTorch does not count such writes: clear the cache.
    """
    # texts and options as one string, which nobody can change between calls
    said = repr((list(labels), list(templates), tokenizer_kwargs))
    # weak references keep no weights alive, and a dead one equals none that took its place in memory
    weights = (*model.parameters(), *model.buffers())
    return said, weakref.ref(tokenizer), *((weakref.ref(weight), *_version(weight)) for weight in weights)


class ClassEmbeddingCache:
    """Keep the class embeddings of the label sets used last.

    Args:
        size: The number of label sets to keep.

    Example:
        >>> cache = ClassEmbeddingCache()
        >>> class_embeds = cache.get(cache_key(model, tokenizer, labels, templates, {}), make)
        >>> cache.clear()
    """

    def __init__(self, size: int = MAX_LABEL_SETS):
        self._size, self._lock = size, Lock()
        self._entries: dict[Hashable, torch.Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the embeddings behind `key`; the first thread that asks for them calls `make`."""
        with self._lock:
            embeds = self._entries.pop(key, None)
            # put back as the newest: a dictionary keeps the order of its insertions
            self._entries[key] = embeds = make() if embeds is None else embeds
            if len(self._entries) > self._size:
                del self._entries[next(iter(self._entries))]
            return embeds

    def clear(self) -> None:
        """Forget all class embeddings."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __getstate__(self) -> dict[str, int]:
        return {"size": self._size}  # a copy or a worker process starts with an empty cache

    def __setstate__(self, state: dict[str, int]) -> None:
        ClassEmbeddingCache.__init__(self, **state)


def _version(weight: torch.Tensor) -> tuple[int, torch.dtype, torch.device, int]:
    return weight.data_ptr(), weight.dtype, weight.device, 0 if weight.is_inference() else weight._version


__all__ = ["ClassEmbeddingCache", "cache_key"]
