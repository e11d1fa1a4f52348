"""Keep the class embeddings of recent label sets, for threads that share one pipeline."""

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from transformers import PreTrainedModel

from .prompts import embed_labels

MAX_LABEL_SETS = 16


class ModelState:
    """Remember which weights a model had, and in which version, without keeping them alive.

    A weight that is replaced, moved, cast or written to changes the state; one written through `.data` does not.
    """

    def __init__(self, model: torch.nn.Module):
        self._marks = [(weakref.ref(weight), *_mark(weight)) for weight in _weights(model)]

    def is_of(self, model: torch.nn.Module) -> bool:
        """Return True if `model` still has the weights it had."""
        weights = _weights(model)
        return len(weights) == len(self._marks) and all(
            known() is weight and tuple(mark) == _mark(weight)
            for weight, (known, *mark) in zip(weights, self._marks, strict=True)
        )


class ClassEmbeddingCache:
    """Hold class embeddings by labels, templates, tokenizer, its options, and the state of the model.

    The `size` label sets used last are kept. A change of the model or the tokenizer drops them all.
    """

    def __init__(self, size: int = MAX_LABEL_SETS):
        self._size, self._lock = size, Lock()
        self._tokenizer: Any = None
        self._state: ModelState | None = None
        self._entries: OrderedDict[str, torch.Tensor] = OrderedDict()

    def get(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        labels: Sequence[Any],
        templates: Sequence[str],
        tokenizer_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Return the class embeddings (labels, projection_dim) on the model's device; make them if they are new."""
        # a text, which nobody can change between calls
        key = repr((list(labels), list(templates), tokenizer_kwargs))
        with self._lock:  # threads that ask for the same labels at once encode them once
            if self._tokenizer is not tokenizer or self._state is None or not self._state.is_of(model):
                self._entries.clear()
                self._tokenizer, self._state = tokenizer, ModelState(model)
            if key not in self._entries:
                embeds = embed_labels(model, tokenizer, labels, templates, **tokenizer_kwargs)
                self._entries[key] = embeds.to(model.device)
                if len(self._entries) > self._size:
                    self._entries.popitem(last=False)
            self._entries.move_to_end(key)
            return self._entries[key]

    def __getstate__(self) -> dict[str, int]:
        return {"size": self._size}  # a copy or a worker process starts with an empty cache

    def __setstate__(self, state: dict[str, int]) -> None:
        ClassEmbeddingCache.__init__(self, **state)


def _weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _mark(weight: torch.Tensor) -> tuple[int, torch.dtype, torch.device, int]:
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), weight.dtype, weight.device, version


__all__ = ["ClassEmbeddingCache", "ModelState"]
