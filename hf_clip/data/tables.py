"""Tables of one row for each image: csv, tsv, jsonl and parquet."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..utils.packages import require
from .rows import DataError

SEPARATORS = ",;\t"  # open_clip and spreadsheets of many countries write .csv with others than commas
Mappings = Iterator[dict[str, Any]]


def read_table(path: Path) -> Mappings:
    """Yield the rows of a table in the format of its suffix."""
    return READERS[path.suffix.lower()](path)


def _separated(path: Path) -> Mappings:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = file.readline()
            delimiter = max(SEPARATORS, key=header.count)  # a comma where the first line has none
            file.seek(0)
            for row in csv.DictReader(file, delimiter=delimiter, strict=True):
                if None in row or None in row.values():
                    raise DataError(f"a row of {path} has not as many columns as the first line names: {row}")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} is no table in UTF-8: {error}") from error


def _json_lines(path: Path) -> Mappings:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"line {number} of {path} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"line {number} of {path} is a {type(row).__name__}: write one JSON object a line")
            yield row


def _parquet(path: Path) -> Mappings:
    require("pyarrow", "parquet", path.name)
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            yield from batch.to_pylist()


READERS: dict[str, Callable[[Path], Mappings]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}

__all__ = ["READERS", "read_table"]
