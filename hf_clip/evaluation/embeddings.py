"""Embeddings of a data set's images, computed once per model and kept in a folder for later evaluations."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.images import TarMember, UnreadableImageError
from ..data.rows import DataError, Row, Rows
from ..embedding.identity import SAME_PRECISION, store_settings
from ..embedding.images import iter_image_embeds
from ..embedding.store import FeatureStore, Record
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
        normalize: Scale embeddings to length 1.
        projected: Embed after the projection, or before it.

    Returns:
        (images, dim) float32 on the CPU.

    Raises:
        UnreadableImageError: An image cannot be read; the error names it.
        ValueError: An embedding is NaN or infinite.
    """
    encoder = model if projected else BeforeProjection(model)
    options = {"batch_size": batch_size, "workers": workers, "normalize": normalize}
    records = [_record(row) for row in rows]
    with tqdm(desc="images", total=len(rows), unit="image", delay=2) as bar:
        if store is None or None in records:
            embeds = torch.cat([embeds for _, embeds in _watched(encoder, processor, list(rows), bar, options)])
        else:
            embeds = _stored(encoder, processor, rows, records, Path(store), bar, options)
    check_finite(f"the embeddings of {rows.name}", embeds)
    return embeds


def readable_image_embeds(
    model: Any, processor: Any, rows: Rows, *, batch_size: int = 16, workers: int | None = None
) -> tuple[Rows, Tensor]:
    """Embed the images that can be read, and name the others in a warning.

    Args:
        model: A CLIP in evaluation mode.
        processor: Its processor.
        rows: The data set.
        batch_size: Images per pass through the model.
        workers: Threads that prepare images.

    Returns:
        The rows whose image was read, and their embeddings (rows, dim), float32 on the CPU.

    Raises:
        DataError: No image can be read.
        ValueError: An embedding is NaN or infinite.
    """
    found: list[Row] = []
    batches = iter_image_embeds(model, processor, _readable(rows, found), batch_size=batch_size, workers=workers)
    embeds = [embeds for _, embeds in batches]
    if not embeds:
        raise DataError(f"no image of {rows.name} can be read: check the paths of the data set")
    check_finite(f"the embeddings of {rows.name}", torch.cat(embeds))
    return replace(rows, rows=found), torch.cat(embeds)


def _readable(rows: Rows, found: list[Row]) -> Iterator[Any]:
    """Yield the images that can be read, and append their rows to `found`."""
    for row in rows:
        try:
            image = row.open()
        except UnreadableImageError as error:
            logger.warning_once(f"skipped: {error}")
            continue
        found.append(row)
        yield image


def _stored(
    encoder: Any, processor: Any, rows: Rows, records: list[Any], folder: Path, bar: Any, options: dict[str, Any]
) -> Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(encoder.dtype).removeprefix("torch.")
    settings = store_settings(encoder, processor, dtype, options["normalize"])
    kind = "features" if isinstance(encoder, BeforeProjection) else "embeddings"
    key = repr((os.path.abspath(rows.name), settings["model"], dtype, options["normalize"], kind, settings["dim"]))
    name = f"{Path(rows.name).name}-{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
    with FeatureStore(folder / name, settings, SAME_PRECISION) as opened:
        pending = list({record: row for record, row in zip(records, rows, strict=True) if record not in opened}.items())
        bar.update(len(records) - len(pending))
        done = 0
        for count, embeds in _watched(encoder, processor, [row for _, row in pending], bar, options):
            opened.append([record for record, _ in pending[done : done + count]], embeds.numpy())
            done += count
        if not opened.holds(records):
            opened.finish(records)
        return torch.from_numpy(np.load(folder / name))


def _watched(
    encoder: Any, processor: Any, rows: list[Row], bar: Any, options: dict[str, Any]
) -> Iterator[tuple[int, Tensor]]:
    for items, embeds in iter_image_embeds(encoder, processor, (row.open() for row in rows), **options):
        bar.update(len(items))
        yield len(items), embeds


def _record(row: Row) -> Record | None:
    """Return the path, size and time that identify an image of a file or a tar, None for one in memory."""
    source = row.image
    path = source.archive if isinstance(source, TarMember) else source
    if not isinstance(path, str | os.PathLike) or not os.path.isfile(path):
        return None
    stat = os.stat(path)
    return Record(str(source), source.size if isinstance(source, TarMember) else stat.st_size, stat.st_mtime_ns)


def data_fingerprint(rows: Rows) -> str:
    """Return a short digest of the names, sizes, labels and captions of a data set, which changes with any of them."""
    digest = hashlib.sha256(repr(rows.labels).encode())
    for row in rows:
        record = _record(row)
        file = None if record is None else (Path(record.path).name, record.size)
        digest.update(repr((file, row.label, row.texts)).encode())
    return digest.hexdigest()[:16]


__all__ = ["BeforeProjection", "data_fingerprint", "image_embeds", "readable_image_embeds"]
