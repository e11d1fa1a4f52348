"""Embeddings of label sets, kept within a bound of memory."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

LabelSet = tuple[tuple[str, ...], tuple[str, ...]]
MAX_BYTES = 64_000_000


class LabelSetCache:
    """Keep the class embeddings that were used last, up to a number of bytes; requests for one set share its work.

    Args:
        most_bytes: What the embeddings and their labels may take.
    """

    def __init__(self, most_bytes: int = MAX_BYTES):
        self._most_bytes = most_bytes
        self._made: OrderedDict[LabelSet, tuple[Any, int]] = OrderedDict()
        self._making: dict[LabelSet, asyncio.Task] = {}
        self.bytes = 0

    async def get(self, key: LabelSet, make: Callable[[], Awaitable[Any]]) -> Any:
        """Return the embeddings of labels and templates; the first request that asks for them calls `make`."""
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key][0]
        if key not in self._making:
            self._making[key] = asyncio.ensure_future(self._make(key, make))
        # a request that is given up must not take the others' embeddings with it
        return await asyncio.shield(self._making[key])

    async def _make(self, key: LabelSet, make: Callable[[], Awaitable[Any]]) -> Any:
        try:
            embeds = await make()
        finally:
            del self._making[key]
        size = embeds.nbytes + sum(len(text) * 4 + 64 for texts in key for text in texts)
        self._made[key] = embeds, size
        self.bytes += size
        while self.bytes > self._most_bytes:
            self.bytes -= self._made.popitem(last=False)[1][1]
        return embeds

    def __len__(self) -> int:
        return len(self._made)


__all__ = ["LabelSetCache"]
