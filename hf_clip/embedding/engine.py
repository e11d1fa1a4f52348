"""The embedding engine: from a source of images, through preprocessing and the model, into a store.

ImageSource ---- Pending ---- executor ---- EmbeddingStore
(data/)          (is new)     |             (one file, or a directory of parts)
                              +- run_here: images.py, in this process
                              +- run_on_ray: callables.py, on a cluster
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..data.images import Decode, Exif, ImageTally, UnreadableImageError
from ..data.sources import ImageSource, Located
from ..utils.text import first_line
from .arrow import batch_of
from .report import Report
from .stores import EmbeddingStore

if TYPE_CHECKING:  # a run that finds nothing new need not wait for these
    from transformers import PreTrainedModel

Executor = Callable[["Pending"], Generator[Report, None, None]]


@dataclass(frozen=True)
class EmbedOptions:
    """The model and how to run it: all that a process, here or on a cluster, needs to embed images.

    Args:
        model: A folder or a Hub id; workers of a cluster see it under the same name.
        batch_size: Images per pass through the model.
        workers: Threads that read images; as many as PyTorch's unless given.
        normalize: Scale embeddings to length 1.
        device: The device; a GPU if there is one unless given.
        dtype: The dtype to compute in.
        optimize: Optimize the model for inference.
        trust_remote_code: Run code that comes with the repository.
        text_column: The column of captions to embed as well.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
        decode: "draft" decodes large JPEGs at a fraction of their size; "full" has the original's pixels.
    """

    model: str
    batch_size: int = 32
    workers: int | None = None
    normalize: bool = True
    device: str | None = None
    dtype: str = "float32"
    optimize: bool = False
    trust_remote_code: bool = False
    text_column: str | None = None
    exif: Exif = "ignore"
    decode: Decode = "full"


@dataclass
class Pending:
    """The images of a source that a store does not hold yet, found while the others are counted.

    Args:
        source: The images.
        store: Embeddings of earlier runs, opened.
        retry_errors: Embed images again that failed in an earlier run.
        kept: Images of earlier runs so far.
        order: The keys of all images so far, where the store needs them.
        broken: Files of the source so far that could not be read to their end.
    """

    source: ImageSource
    store: EmbeddingStore
    retry_errors: bool = False
    kept: int = 0
    order: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done = self.store.done(self.retry_errors)
        self._changed: dict[str, str] = {}
        self._whole = False
        self.known = self._count_known()

    def __iter__(self) -> Iterator[Located]:
        for image, values in self.source.images(self.broken.append):
            if not self.store.takes(image.key):
                continue
            if self.store.keeps_order:
                self.order.append(image.key)
            version = self._done.pop(image.key, None)
            if version is not None and version == image.version:
                self.kept += 1
                continue
            if version is not None:
                self._changed[image.key] = version
            yield image, values
        self._whole = not self.broken

    def finish(self) -> int:
        """Complete the output, drop rows of images that changed or are gone, and count these rows.

        No row is dropped as gone unless all of the source was read.
        """
        return self.store.finish(self.order, self._done if self._whole else {}, self._changed)

    def _count_known(self) -> int:
        """Count the images that need not be embedded; 0 where counting would mean to read the source twice."""
        if not self._done or not self.source.listed:
            return 0
        return sum(self._done.get(image.key) == image.version for image, _ in self.source.images(print))


def embed_source(
    pending: Pending, executor: Executor, *, strict: bool = False, report: Report | None = None, delay: float = 0
) -> Report:
    """Embed pending images, and complete their store.

    Args:
        pending: The images of a source that a store does not hold.
        executor: Embeds images and puts them into the store: `run_here` or `run_on_ray`, with their arguments bound.
        strict: Stop at the first image that cannot be read.
        report: Counts while the run lasts, for callers that interrupt it.
        delay: Seconds after which a progress bar appears.

    Returns:
        The report: how many images were embedded, kept from earlier runs, dropped, and why others failed.

    Raises:
        UnreadableImageError: An image cannot be read, and `strict` is on.
    """
    report = Report() if report is None else report
    total = pending.source.count if pending.store.holds_all else None
    with (
        tqdm(desc="images", total=total, initial=pending.known, unit="image", delay=delay) as bar,
        closing(executor(pending)) as parts,
    ):
        for part in chain(parts, [Report()]):
            report.add(part)
            report.kept = max(pending.kept, pending.known)
            bar.update(report.count - bar.n)
            if report.errors:
                bar.set_postfix({"failed": sum(report.errors.values())}, refresh=False)
            if part.failed and strict:
                raise UnreadableImageError(report.skipped())
    report.kept, report.broken = pending.kept, pending.broken
    report.dropped = pending.finish()
    return report


def run_here(
    pending: Pending,
    options: EmbedOptions,
    load: Callable[[], "tuple[PreTrainedModel, Any]"],
    *,
    fill: bool = False,
    strict: bool = False,
    on_error: Callable[[str], None] = lambda _: None,
) -> Generator[Report, None, None]:
    """Embed images in this process; yield a report of each batch that the store has got.

    Args:
        pending: The images, and the store.
        options: How to run the model.
        load: Loads the model and its processor; it is called if there is anything to embed.
        fill: Fill each pass through the model up to `batch_size`, so that embeddings do not depend on how images were
            divided into batches.
        strict: Raise the error of the first image that cannot be read.
        on_error: Called with the reason why an image cannot be read.
    """
    images = iter(pending)
    first = next(images, None)
    if first is None:
        return
    from .features import on_cpu
    from .images import image_features

    model, processor = load()
    embed_texts = _text_embedder(model, processor, options)
    located: dict[str, Located] = {}
    failed: list[tuple[Located, str]] = []
    tally = ImageTally()

    def references() -> Iterator[Any]:
        for image, values in chain([first], images):
            located[image.key] = image, values
            yield image

    def keep_error(image: Any, error: Exception) -> None:
        on_error(first_line(error))
        failed.append((located.pop(image.key), first_line(error)))

    batches = image_features(
        model,
        processor,
        references(),
        options.batch_size,
        options.workers,
        options.normalize,
        on_error=None if strict else keep_error,
        fill=fill,
        exif=options.exif,
        decode=options.decode,
        tally=tally,
    )
    try:
        for items, embeds in batches:
            rows = [located.pop(image.key) for image in items]
            part = _append(pending, rows, np.asarray(on_cpu(embeds)), failed, embed_texts)
            part.rotated, part.sixteen_bits = tally.take()
            yield part
        if failed:
            width = pending.store.settings["dim"]
            yield _append(pending, [], np.empty((0, width), np.float32), failed, embed_texts)
    finally:
        pending.store.flush()


def _text_embedder(model: Any, processor: Any, options: EmbedOptions) -> Callable[[Mapping[str, Any]], Any] | None:
    if options.text_column is None:
        return None
    from .callables import TextEmbedder

    return TextEmbedder((model, processor), options.text_column, normalize=options.normalize)


def _append(
    pending: Pending,
    rows: list[Located],
    embeds: np.ndarray,
    failed: list[tuple[Located, str]],
    embed_texts: Callable[[Mapping[str, Any]], Any] | None,
) -> Report:
    """Append a batch and the images that failed before it to the store, and report it."""
    missing = np.full((len(failed), embeds.shape[1]), np.nan, np.float32)
    batch = {
        **batch_of([*rows, *(image for image, _ in failed)], pending.source.columns),
        "embedding": np.concatenate([embeds, missing]),
        "error": [*[None] * len(rows), *(reason for _, reason in failed)],
    }
    failed.clear()
    batch = batch if embed_texts is None else embed_texts(batch)
    pending.store.append(batch)
    return Report.of(batch["path"], batch["error"])


__all__ = ["EmbedOptions", "Executor", "Pending", "embed_source", "run_here"]
