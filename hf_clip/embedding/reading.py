"""Read embeddings back, whichever output of `hf-clip embed` holds them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import file_version
from ..utils.packages import require
from ..utils.places import place_at, reaching
from ..utils.text import as_line
from .files import FORMATS, belongs, index_path, known_file_settings, read_index
from .parts import SETTINGS, count_rows, iter_parts, read_settings
from .stores import OUTPUT_SUFFIXES, StoreError, is_directory


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a finished output.

    Args:
        name: The path or address of the output.
        settings: The model's name and probe, `dim`, and how the embeddings were made.
        count: The rows, failed images included.
        chunks: Yields Arrow tables of an output's columns and the rows (B, dim) that belong to them.
    """

    name: str
    settings: dict[str, Any]
    count: int
    chunks: Callable[[], Iterator[tuple[Any, np.ndarray]]]


def open_embeddings(path: str) -> Embeddings:
    """Open the output of `hf-clip embed`: a file, or a directory of parts at a path or an address.

    Raises:
        StoreError: There is no such output, or nothing beside it identifies the model.
    """
    require("pyarrow", "search", "reading embeddings")
    file = Path(path)
    if file.suffix in OUTPUT_SUFFIXES and file.is_file():
        return _open_file(file)
    place = place_at(path)
    if not place.fs.isdir(place.path) and not place.fs.exists((place / SETTINGS).path):
        raise StoreError(f"there are no embeddings at {path}: give an output of hf-clip embed")
    return Embeddings(path, read_settings(place), count_rows(place), lambda: iter_parts(place))


def settings_at(output: str) -> dict[str, Any] | None:
    """Return the settings of an output's earlier runs, None if there were none."""
    if not is_directory(output):
        return known_file_settings(Path(output))
    place = place_at(output)
    with reaching(place):
        return read_settings(place) if place.fs.exists((place / SETTINGS).path) else None


def _open_file(path: Path) -> Embeddings:
    settings, records = read_index(index_path(path))
    if settings is None:
        raise StoreError(f"{path} lacks the {path.name}.index.jsonl that identifies its model: embed it again")
    return Embeddings(str(path), settings, len(records), lambda: _file_chunks(path, settings, records))


def _file_chunks(path: Path, settings: dict, records: list) -> Iterator[tuple[Any, np.ndarray]]:
    import pyarrow as pa

    if not belongs(path, settings):
        raise _other_rows(path)
    start, version = 0, file_version(str(path))
    for values in FORMATS[path.suffix].read(path, settings):
        rows = values.reshape(-1, settings["dim"])
        names = [as_line(record.path) for record in records[start : start + len(rows)]]
        yield pa.table({"key": names, "path": names}), rows
        start += len(rows)
    if start != len(records) or file_version(str(path)) != version:
        raise _other_rows(path)


def _other_rows(path: Path) -> StoreError:
    return StoreError(f"{path} does not have the rows that {path.name}.index.jsonl lists: embed it again")


__all__ = ["Embeddings", "open_embeddings", "settings_at"]
