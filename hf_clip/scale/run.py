"""Embed a source into a directory of parts on this machine, as far as finished parts do not hold it already."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..embedding.parts import PART_ROWS, PartStore
from .report import Report
from .rows import as_table, batch_of, batched, joined
from .sources import Item, Source

if TYPE_CHECKING:
    from .callables import ImageEmbedder, ImagePreprocessor, TextEmbedder

# a part is written at the latest after so many seconds: as much is lost when a process is killed
PART_SECONDS = 60.0


class Bar(Protocol):
    """Show progress, as tqdm does."""

    def update(self, count: int) -> Any:
        """Count rows that are done."""

    def set_postfix(self, *args: Any, **kwargs: Any) -> Any:
        """Show failures so far."""


@dataclass
class Pending:
    """What of a source is to be done, found while its items are counted.

    Args:
        source: The images.
        store: Where finished parts are.
        retry_errors: Do images again that failed in an earlier run.
    """

    source: Source
    store: PartStore
    retry_errors: bool = False
    kept: int = 0
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done = self.store.done(self.retry_errors)
        self._changed: dict[str, str] = {}
        self._whole = False

    def __iter__(self) -> Iterator[Item]:
        for item in self.source.items(self.broken.append):
            if not self.store.shard.holds(item.key):
                continue
            version = self._done.pop(item.key, None)
            if version == item.version:
                self.kept += 1
                continue
            if version is not None:
                self._changed[item.key] = version
            yield item
        self._whole = not self.broken

    def known(self) -> int:
        """Count the images of earlier runs."""
        return len(self._done)

    def finish(self, written: int) -> int:
        """Drop rows of images that have changed, are gone, or were written twice; return how many.

        Nothing is dropped for being gone unless all of the source was read.
        """
        gone = self._done if self._whole else {}
        if not (gone or self._changed or written):
            return 0
        return self.store.prune(lambda key, version: version not in (gone.get(key), self._changed.get(key)))


class Steps(NamedTuple):
    """What batches go through.

    Args:
        preprocess: Gives pixels.
        embed: Gives embeddings.
        embed_texts: Gives embeddings of captions, if they are wanted.
    """

    preprocess: "ImagePreprocessor"
    embed: "ImageEmbedder"
    embed_texts: "TextEmbedder | None" = None


class StrictError(ValueError):
    """An image cannot be read, and the run is to stop at the first of these."""


def run(
    source: Source,
    store: PartStore,
    prepare: Callable[[], Steps],
    batch_size: int,
    bar: Bar,
    *,
    strict: bool = False,
    retry_errors: bool = False,
    part_rows: int = PART_ROWS,
) -> Report:
    """Embed what is missing, a part after the other.

    However the run ends, the parts that it has written count; on an exception, what has been embedded is written.

    Args:
        source: The images.
        store: The directory, opened.
        prepare: Loads the model; it is called if there is anything to embed.
        batch_size: Images per pass through the model.
        bar: Shows progress.
        strict: Stop at the first image that cannot be read.
        retry_errors: Try images again that failed in an earlier run.
        part_rows: The rows of a part.

    Raises:
        StrictError: An image cannot be read, and `strict` is on.
    """
    pending, report = Pending(source, store, retry_errors), Report()
    batches = (batch_of(items, source.columns) for items in batched(_counting(pending, bar), batch_size))
    ready: list[dict[str, Any]] = []
    begin = time.monotonic()

    def flush() -> None:
        nonlocal begin
        if ready:
            table = as_table(joined(ready), source.columns, store.settings["row_dtype"])
            store.write(table)
            report.count(table)
            ready.clear()
        begin = time.monotonic()

    try:
        for embedded in _embedded(batches, prepare):
            if strict and (errors := [error for error in embedded["error"] if error is not None]):
                raise StrictError(errors[0])
            ready.append(embedded)
            bar.update(len(embedded["key"]))
            failures = sum(report.errors.values()) + sum(error is not None for b in ready for error in b["error"])
            bar.set_postfix({"failed": failures}, refresh=False) if failures else None
            if len(ready) * batch_size >= part_rows or time.monotonic() - begin > PART_SECONDS:
                flush()
    finally:
        flush()
    report.kept, report.broken = pending.kept, pending.broken
    report.dropped = pending.finish(report.embedded + sum(report.errors.values()))
    return report


def _counting(pending: Pending, bar: Bar) -> Iterator[Item]:
    """Let the bar count what earlier runs did, too."""
    told = 0
    for item in pending:
        bar.update(pending.kept - told)
        told = pending.kept
        yield item
    bar.update(pending.kept - told)


def _embedded(batches: Iterator[Mapping[str, Any]], prepare: Callable[[], Steps]) -> Iterator[dict[str, Any]]:
    """Embed batches; without any, nothing is loaded."""
    first = next(batches, None)
    if first is None:
        return
    import torch  # a run that finds nothing new need not wait for it

    preprocess, embed, embed_texts = prepare()
    for batch in _prepared(chain([first], batches), preprocess, torch.cuda.is_available()):
        embedded = embed(batch)
        yield embedded if embed_texts is None else embed_texts(embedded)


def _prepared(
    batches: Iterable[Mapping[str, Any]], preprocess: Callable[[Mapping[str, Any]], dict[str, Any]], ahead: bool
) -> Iterator[dict[str, Any]]:
    """Preprocess batches; two ahead of a GPU, whereas a model on the CPU wants all cores itself."""
    if not ahead:
        yield from map(preprocess, batches)
        return
    with ThreadPoolExecutor(1) as pool:
        taken = deque()
        for batch in batches:
            taken.append(pool.submit(preprocess, batch))
            if len(taken) > 2:
                yield taken.popleft().result()
        while taken:
            yield taken.popleft().result()


__all__ = ["Bar", "Pending", "Steps", "StrictError", "run"]
