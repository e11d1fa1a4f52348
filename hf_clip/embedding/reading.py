"""Read embeddings back, whichever output of `hf-clip embed` holds them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.packages import require
from ..utils.places import place_at
from .parts import SETTINGS, count_rows, iter_parts, read_settings
from .store import FORMATS, StoreError, as_line, read_index


@dataclass(frozen=True)
class Embeddings:
    """What a finished output holds.

    Args:
        name: The path or address of the output.
        settings: What identifies the model, and `dim`.
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
    if file.suffix in FORMATS and file.is_file():
        return _open_file(file)
    place = place_at(path)
    if not place.fs.isdir(place.path) and not place.fs.exists((place / SETTINGS).path):
        raise StoreError(f"there are no embeddings at {path}: give an output of hf-clip embed")
    return Embeddings(path, read_settings(place), count_rows(place), lambda: iter_parts(place))


def _open_file(path: Path) -> Embeddings:
    settings, records = read_index(Path(f"{path}.index.jsonl"))
    if settings is None:
        raise StoreError(f"{path} lacks the {path.name}.index.jsonl that identifies its model: embed it again")
    return Embeddings(str(path), settings, len(records), lambda: _file_chunks(path, settings, records))


def _file_chunks(path: Path, settings: dict, records: list) -> Iterator[tuple[Any, np.ndarray]]:
    import pyarrow as pa

    start = 0
    for values in FORMATS[path.suffix].read(path, settings):
        rows = values.reshape(-1, settings["dim"])
        names = [as_line(record.path) for record in records[start : start + len(rows)]]
        yield pa.table({"key": names, "path": names}), rows
        start += len(rows)
    if start != len(records):
        raise StoreError(f"{path} is not what {path.name}.index.jsonl tells: embed it again")


__all__ = ["Embeddings", "open_embeddings"]
