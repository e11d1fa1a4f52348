"""Embeddings of a data set's images, computed once per model and kept in a folder for later evaluations."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from ..data.images import Exif, ImageTally, UnreadableImageError, surprises
from ..data.rows import DataError, Row, Rows
from ..data.sources import ImageSource
from ..embedding.engine import EmbedOptions, Pending, embed_source, run_here
from ..embedding.features import collect
from ..embedding.files import FileStore
from ..embedding.identity import SAME_PRECISION, store_settings
from ..embedding.images import image_features
from ..metrics.checks import check_finite

logger = logging.get_logger(__name__)


class BeforeProjection:
    """Wrap a CLIP so that its image features are the tower's pooled ones, before the projection."""

    def __init__(self, model: Any):
        self._model = model
        self.config, self.dtype = model.config, model.dtype

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return self._model.device

    @property
    def training(self) -> bool:
        """Return True if the model is in training mode."""
        return self._model.training

    def get_image_features(self, pixel_values: Tensor) -> Any:
        """Return the tower's output, whose `pooler_output` is (B, hidden_size)."""
        return self._model.vision_model(pixel_values)


def image_embeds(
    model: Any,
    processor: Any,
    rows: Rows,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    store: str | os.PathLike[str] | None = None,
    exif: Exif = "ignore",
    normalize: bool = True,
    projected: bool = True,
) -> Tensor:
    """Embed the images of a data set, or read the embeddings that an earlier call kept in `store`.

    Args:
        model: A CLIP in evaluation mode.
        processor: Its processor.
        rows: The data set.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        store: A folder to keep embeddings in, from which a stopped run goes on. Images in memory are not kept.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.
        normalize: Scale embeddings to length 1.
        projected: Embed after the projection, or before it.

    Returns:
        (images, dim) float32 on the CPU.

    Raises:
        UnreadableImageError: An image cannot be read; the error names it.
        ValueError: An embedding is NaN or infinite.
    """
    encoder = model if projected else BeforeProjection(model)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "normalize": normalize, "exif": exif}
    if store is None or any(row.image.version is None for row in rows):
        embeds = collect(_embed(encoder, processor, (row.image for row in rows), **options), "image", len(rows))
    else:
        embeds = _stored(encoder, processor, rows, Path(store), options)
    check_finite(f"the embeddings of {rows.name}", embeds)
    return embeds


def readable_image_embeds(
    model: Any,
    processor: Any,
    rows: Rows,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    exif: Exif = "ignore",
) -> tuple[Rows, Tensor]:
    """Embed the images that can be read, and name the others in a warning.

    Args:
        model: A CLIP in evaluation mode.
        processor: Its processor.
        rows: The data set.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.
        exif: "apply" turns images as their EXIF orientation says; "ignore" does as the original.

    Returns:
        The rows whose image was read, and their embeddings (rows, dim), float32 on the CPU.

    Raises:
        DataError: No image can be read.
        ValueError: An embedding is NaN or infinite.
    """
    found: list[Row] = []
    images = _readable(rows, found, exif)
    embeds = list(_embed(model, processor, images, batch_size=batch_size, workers=workers, exif=exif))
    if not embeds:
        raise DataError(f"no image of {rows.name} can be read: check the paths of the data set")
    joined = torch.cat(embeds)
    check_finite(f"the embeddings of {rows.name}", joined)
    return replace(rows, rows=found), joined


def _embed(encoder: Any, processor: Any, images: Iterable[Any], exif: Exif, **options: Any) -> Iterator[Tensor]:
    tally = ImageTally()
    for _, embeds in image_features(encoder, processor, images, exif=exif, tally=tally, **options):
        yield embeds.cpu()
    _tell_surprises(tally.images, tally.rotated, tally.sixteen_bits, exif)


def _tell_surprises(images: int, rotated: int, sixteen_bits: int, exif: Exif) -> None:
    """Warn of images that a model sees in another way than people: once, though several models may read them."""
    for sentence in surprises(images, rotated, sixteen_bits, exif):
        logger.warning_once(sentence)


def _readable(rows: Rows, found: list[Row], exif: Exif) -> Iterator[Any]:
    """Yield the images that can be read, and append their rows to `found`."""
    for row in rows:
        try:
            image = row.open(exif)
        except UnreadableImageError as error:
            logger.warning_once(f"skipped: {error}")
            continue
        found.append(row)
        yield image


def _stored(encoder: Any, processor: Any, rows: Rows, folder: Path, options: dict[str, Any]) -> Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(encoder.dtype).removeprefix("torch.")
    settings = store_settings(encoder, processor, dtype, options["normalize"])
    kind = "features" if isinstance(encoder, BeforeProjection) else "embeddings"
    if options["exif"] == "apply":
        settings["exif"] = "apply"
    shared = (settings["model"], dtype, options["normalize"], kind, settings["dim"], *settings.get("exif", ""))
    key = repr((os.path.abspath(rows.name), *shared))
    name = f"{Path(rows.name).name}-{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
    unique = {row.image.key: row.image for row in rows}  # an image may have several rows
    source = ImageSource(rows.name, {}, lambda _: ((image, {}) for image in unique.values()), len(unique), listed=True)
    with FileStore(folder / name, settings, SAME_PRECISION) as opened:
        run = partial(
            run_here, options=EmbedOptions(settings["model"], **options), load=lambda: (encoder, processor), strict=True
        )
        report = embed_source(Pending(source, opened), run, delay=2)
    _tell_surprises(report.embedded, report.rotated, report.sixteen_bits, options["exif"])
    places = {key: place for place, key in enumerate(unique)}
    return torch.from_numpy(np.load(folder / name))[[places[row.image.key] for row in rows]]


def _file(row: Row) -> tuple[str, int] | None:
    """Return the name and the size of an image's file, or of its place in a tar; None for one in memory."""
    image = row.image
    if image.in_memory or not os.path.isfile(image.source):
        return None
    size = os.stat(image.source).st_size if image.span is None else image.span[1]
    return Path(image.name).name, size


def data_fingerprint(rows: Rows) -> str:
    """Return a short digest of the names, sizes, labels and captions of a data set, which changes with any of them."""
    digest = hashlib.sha256(repr(rows.labels).encode())
    for row in rows:
        several = () if row.classes is None else (row.classes,)
        digest.update(repr((_file(row), row.label, row.texts, *several)).encode())
    return digest.hexdigest()[:16]


__all__ = ["BeforeProjection", "data_fingerprint", "image_embeds", "readable_image_embeds"]
