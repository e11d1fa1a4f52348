"""Batches of columns on their way to the parts of a PartStore."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..embedding.parts import fixed_size

if TYPE_CHECKING:
    from .sources import Item


def batch_of(items: Sequence["Item"], columns: Iterable[str]) -> dict[str, Any]:
    """Turn items into columns: key, path, version, image, and those of the source."""
    batch = {name: as_objects(getattr(item, name) for item in items) for name in ("key", "path", "version", "image")}
    return {**batch, **{name: as_objects(item.columns.get(name) for item in items) for name in columns}}


def as_objects(values: Iterable[Any]) -> np.ndarray:
    """Make a column of any values, lists among them."""
    values = list(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def as_table(batch: Mapping[str, Any], columns: Mapping[str, Any], row_dtype: str) -> Any:
    """Make an Arrow table of a part from a batch with embeddings and errors.

    Args:
        batch: The columns, with `embedding`, `error` and perhaps `text_embedding`.
        columns: The Arrow types of the source's columns.
        row_dtype: The dtype of stored embeddings.
    """
    import pyarrow as pa

    arrays = {name: pa.array(_listed(batch[name]), pa.string()) for name in ("key", "path")}
    arrays |= {name: pa.array(_listed(batch[name]), kind) for name, kind in columns.items()}
    for name in ("embedding", "text_embedding"):
        if name in batch:
            arrays[name] = as_lists(np.asarray(batch[name], np.float32), row_dtype)
    arrays |= {name: pa.array(_listed(batch[name]), pa.string()) for name in ("error", "version")}
    return pa.table(arrays)


def as_lists(values: np.ndarray, row_dtype: str | None = None) -> Any:
    """Turn rows of any shape into an Arrow array of fixed-size lists."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    return fixed_size(rows.astype(row_dtype or rows.dtype))


def _listed(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put batches one after the other."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def batched(items: Iterable["Item"], size: int) -> Iterator[list["Item"]]:
    """Yield lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


__all__ = ["as_lists", "as_objects", "as_table", "batch_of", "batched", "joined"]
