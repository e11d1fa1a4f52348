"""Embeddings of many images."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..data.images import Decode, Exif, ImageRef, ImageTally, UnreadableImageError, draft_side
from ..utils.text import first_line
from ..utils.threads import thread_count
from .features import Array, Model, as_batch, collect, concatenate, features, is_on_cpu, on_cpu, tensor_type

OnError = Callable[[Any, Exception], None]
_T = TypeVar("_T")


@dataclass
class ImageBatch:
    """Images on their way to the model: first as items, then as jobs that end in pixels, at last as pixels.

    Args:
        start: Number of the first image.
        items: The caller's objects, one for each image; a ready batch has its rows.
        pixel_values: (B, 3, H, W) at the end, and from the start in a ready batch.
        jobs: One for each item: its download (an ImageRef), then its pixels (1, 3, H, W).
    """

    start: int
    items: list[Any] = field(default_factory=list)
    pixel_values: Any = None
    jobs: list[Future] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Return True if the pixels need no job."""
        return self.pixel_values is not None

    @property
    def end(self) -> int:
        """Return the number of the next batch's first image."""
        return self.start + len(self.items)


def embed_images(
    model: Model,
    processor: Any,
    images: Any,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    normalize: bool = True,
    exif: Exif = "ignore",
    decode: Decode = "full",
    deterministic: bool = False,
) -> Array:
    """Embed any number of images, which are read as they are needed.

    Files are opened by `PIL.Image.open`, as with the original: the EXIF orientation is ignored, with a warning, unless
    `exif` is "apply", whereas the pipelines of transformers turn images upright.

    Args:
        model: A CLIP, of this package or transformers' own, or its vision tower with projection; in evaluation mode. Or
            an exported CLIP, which takes and gives NumPy arrays.
        processor: Its processor, or an image processor.
        images: One or an iterable of: paths, URLs, `ImageRef`s, PIL images, arrays and tensors as the processor takes
            them, or ready batches, which are floating-point (B, 3, H, W) or mappings with `pixel_values`, such as a
            DataLoader gives.
        batch_size: Images per pass through the model.
        workers: Threads that read images; as many as PyTorch's own unless given.
        normalize: Scale embeddings to length 1.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
        decode: "draft" decodes large JPEGs at a fraction of their size, at least twice the model's: several times as
            fast, and pixels are off by less than half a level on average; "full" has the original's pixels.
        deterministic: Compute each image alone and on one thread, several at a time: its bits then depend neither on
            the other images and their order nor on the number of threads.

    Returns:
        Embeddings (N, projection_dim), float32 on the CPU.

    Raises:
        UnreadableImageError: An image cannot be read; the error names it.
        ValueError: There are no images, or they have another size than the model's.

    Example:
        >>> embeds = embed_images(model, processor, ["one.jpg", "two.jpg"])  # (2, projection_dim)
    """
    options = {"batch_size": batch_size, "workers": workers, "normalize": normalize, "exif": exif, "decode": decode}
    batches = iter_image_embeds(model, processor, images, deterministic=deterministic, **options)  # type: ignore[arg-type]
    return collect((embeds for _, embeds in batches), "image", count_images(images))


def iter_image_embeds(
    model: Model,
    processor: Any,
    images: Any,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    normalize: bool = True,
    on_error: OnError | None = None,
    exif: Exif = "ignore",
    decode: Decode = "full",
    deterministic: bool = False,
) -> Iterator[tuple[list[Any], Array]]:
    """Embed images as `embed_images` does, batch by batch and in order.

    Threads prepare images while a GPU computes, two batches ahead of it. For a model on the CPU, which wants all cores
    itself, they work between its batches, and only addresses are fetched one batch ahead.

    Args:
        model: As in `embed_images`.
        processor: As in `embed_images`.
        images: As in `embed_images`.
        batch_size: Images per pass through the model.
        workers: Threads that read images; as many as PyTorch's own unless given.
        normalize: Scale embeddings to length 1.
        on_error: Called with an unreadable item and its error, in order and on the caller's thread; the item is then
            left out. Without it the first such item ends the iteration.
        exif: As in `embed_images`.
        decode: As in `embed_images`.
        deterministic: As in `embed_images`.

    Yields:
        The items of a batch (the rows of a ready one) and their embeddings (B, projection_dim).

    Raises:
        UnreadableImageError: An image cannot be read, and there is no `on_error`.
        ValueError: The images have another size than the model's.

    Example:
        >>> for paths, embeds in iter_image_embeds(model, processor, paths, on_error=print):
        ...     index.add(paths, embeds)
    """
    reading: dict[str, Any] = {"exif": exif, "decode": decode, "deterministic": deterministic}
    batches = image_features(model, processor, images, batch_size, workers, normalize, on_error, **reading)
    for items, embeds in batches:
        yield items, on_cpu(embeds)


def image_features(
    model: Model,
    processor: Any,
    images: Any,
    batch_size: int,
    workers: int | None,
    normalize: bool = True,
    on_error: OnError | None = None,
    fill: bool = False,
    exif: Exif = "ignore",
    decode: Decode = "full",
    tally: ImageTally | None = None,
    deterministic: bool = False,
) -> Iterator[tuple[list[Any], Array]]:
    """Yield the items of each batch and their embeddings on the model's device; see `iter_image_embeds`.

    With `fill`, each pass through the model has `batch_size` images, black ones at the end: matrix products of another
    shape may round differently, so that embeddings would depend on how images were divided into batches. Images that
    the model sees in another way than people are counted in `tally`; without one, a warning counts them at the end.
    """
    counted = ImageTally() if tally is None else tally
    image_size = getattr(model.config, "vision_config", model.config).image_size
    pool = ThreadPoolExecutor(workers or thread_count(), thread_name_prefix="hf_clip")
    image_processor = getattr(processor, "image_processor", processor)
    opened = partial(ImageRef.open, exif=exif, tally=counted, draft_side=draft_side(image_processor, decode))
    prepare = partial(image_processor, return_tensors=tensor_type(model))
    submit = partial(_decode, pool, prepare, Lock(), opened)
    fetched = map(partial(_fetch, pool), _batches(images, batch_size, partial(as_batch, model)))
    # a model on the CPU wants all cores: whatever else needs one in the meantime makes the others wait
    decoded = map(submit, _ahead(fetched, 1)) if is_on_cpu(model) else _ahead(map(submit, fetched), 2)
    try:
        for batch in decoded:
            _finish(batch, image_size, on_error)
            if batch.items:
                pixels = _filled(batch.pixel_values, prepare, batch_size) if fill else batch.pixel_values
                embeds = features(model, "image", {"pixel_values": pixels}, normalize, deterministic)
                yield batch.items, embeds[: len(batch.items)]
        if tally is None:
            counted.warn(exif)
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(values: Iterable[_T], count: int) -> Iterator[_T]:
    """Iterate over `values`, reading `count` items ahead."""
    taken = deque()
    for value in values:
        taken.append(value)
        if len(taken) > count:
            yield taken.popleft()
    yield from taken


def _batches(images: Any, batch_size: int, as_array: Callable[[Any], Array]) -> Iterator[ImageBatch]:
    """Yield ready batches, as arrays of the model's kind, and other images `batch_size` at a time."""
    batch = ImageBatch(0)
    for image in _one_by_one(images):
        found = _ready_pixels(image)
        ready = None if found is None else as_array(found)
        if ready is None:
            batch.items.append(image)
        if batch.items and (ready is not None or len(batch.items) == batch_size):
            yield batch
            batch = ImageBatch(batch.end)
        if ready is not None:
            batch = ImageBatch(batch.start, list(ready), ready)
            yield batch
            batch = ImageBatch(batch.end)
    if batch.items:
        yield batch


def _one_by_one(images: Any) -> Iterator[Any]:
    """Yield one image or ready batch at a time, from any nesting of iterables."""
    is_batch = isinstance(images, list | tuple) and len(images) > 1 and getattr(images[0], "ndim", 0) == 4
    if is_batch and any(getattr(other, "ndim", 4) < 2 for other in images[1:]):
        raise TypeError(
            "a batch comes with labels or other columns: give the pixels alone, such as "
            "(pixels for pixels, _ in loader)"
        )
    if (
        isinstance(images, str | os.PathLike | ImageRef | Image.Image)
        or getattr(images, "ndim", 4) < 4
        or _ready_pixels(images) is not None
    ):
        yield images
    elif not (isinstance(images, Iterable) or hasattr(images, "__getitem__")):
        raise TypeError(f"an image is a path, a URL, a PIL image, an array or a tensor, not {type(images).__name__}")
    else:
        for image in images:
            yield from _one_by_one(image)


def _ready_pixels(batch: Any) -> Any:
    """Return the pixels (B, 3, H, W) of a batch that went through a processor already, None for anything else."""
    if isinstance(batch, Mapping):
        if "pixel_values" not in batch:
            raise ValueError(f"a batch needs pixel_values, this one has {', '.join(map(str, batch))}")
        return batch["pixel_values"]
    if getattr(batch, "ndim", 0) == 4:
        is_floating = getattr(batch.dtype, "is_floating_point", None)  # of tensors
        return batch if (np.dtype(batch.dtype).kind == "f" if is_floating is None else is_floating) else None
    return None


def _fetch(pool: Executor, batch: ImageBatch) -> ImageBatch:
    """Submit work that takes time but no core: downloads."""
    if not batch.is_ready:
        images = (_reference(index, item) for index, item in enumerate(batch.items, batch.start))
        batch.jobs = [pool.submit(image.fetched) for image in images]
    return batch


def _reference(index: int, item: Any) -> ImageRef:
    return ImageRef.of(item, None if isinstance(item, str | os.PathLike) else f"images[{index}]")


def _decode(
    pool: Executor, prepare: Callable[..., Any], lock: Lock, opened: Callable[[ImageRef], Any], batch: ImageBatch
) -> ImageBatch:
    """Submit work that takes a core: decoding and cropping."""
    if not batch.is_ready:
        fetched = enumerate(zip(batch.items, batch.jobs, strict=True), batch.start)
        batch.jobs = [
            pool.submit(_pixel_values, prepare, lock, opened, _reference(index, item), job)
            for index, (item, job) in fetched
        ]
    return batch


def _pixel_values(
    prepare: Callable[..., Any], lock: Lock, opened: Callable[[ImageRef], Any], image: ImageRef, fetched: Future
) -> Array:
    try:
        # the same PIL image may come twice, and two threads must not decode one file
        with lock if isinstance(image.source, Image.Image) else nullcontext():
            pixels = opened(fetched.result())
        return prepare(images=[pixels])["pixel_values"]
    except UnreadableImageError:
        raise
    except Exception as error:  # a download that failed, or an image that the processor refuses
        reason = getattr(error, "unnamed", None) or first_line(error.__cause__ or error)
        raise UnreadableImageError(f"cannot read {image.name[:200]}: {reason}") from error


def _finish(batch: ImageBatch, image_size: int, on_error: OnError | None) -> None:
    """Wait for the pixels of a batch; pass the items that cannot be read to `on_error`, and leave them out."""
    if batch.pixel_values is not None:
        _check_size(batch.pixel_values, image_size)
        return
    items, batch.items, rows = batch.items, [], []
    for item, job in zip(items, batch.jobs, strict=True):
        try:
            rows.append(_check_size(job.result(), image_size))
        except UnreadableImageError as error:
            if on_error is None:
                raise
            on_error(item, error)
        else:
            batch.items.append(item)
    if rows:
        batch.pixel_values = concatenate(rows)


def _filled(pixel_values: Array, prepare: Callable[..., Any], batch_size: int) -> Array:
    """Append black images to a batch (B, 3, H, W) that has fewer than `batch_size`."""
    missing = batch_size - len(pixel_values)
    if missing <= 0:
        return pixel_values
    black = Image.new("RGB", pixel_values.shape[-2:][::-1])
    pixels = prepare(images=[black])["pixel_values"]
    return concatenate([pixel_values, *[pixels] * missing])


def _check_size(pixel_values: Array, image_size: int) -> Array:
    if pixel_values.shape[-2:] != (image_size, image_size):
        height, width = pixel_values.shape[-2:]
        raise ValueError(
            f"the images come {height}x{width} from the processor, the model reads {image_size}x{image_size}: use the "
            "processor of the same repository"
        )
    return pixel_values


def count_images(images: Any) -> int | None:
    """Return the number of images where that is known beforehand."""
    return len(images) if isinstance(images, list | tuple) else None


__all__ = ["OnError", "UnreadableImageError", "count_images", "embed_images", "image_features", "iter_image_embeds"]
