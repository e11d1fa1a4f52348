"""Write parts in a worker of an engine; nothing here needs PyTorch."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..embedding.parts import write_part
from ..utils.places import place_at
from .arrow import ordered
from .report import Report


class PartWriter:
    """Write a batch as one part, named by its keys, so that a repeated task replaces its own part.

    Args:
        output: The directory, at a path or an address that all nodes see.
        prefix: What the names of this run's parts begin with.
        columns: The Arrow types of the source's columns.
        row_dtype: The dtype of stored embeddings.
    """

    def __init__(self, output: str, prefix: str, columns: Mapping[str, Any], row_dtype: str):
        self.output, self.prefix, self.columns, self.row_dtype = output, prefix, columns, row_dtype

    def __call__(self, table: Any) -> Any:
        """Return what was written, as one row.

        Args:
            table: Rows with embeddings and errors.
        """
        import pyarrow as pa

        table = ordered(table, self.columns, self.row_dtype)
        keys = "\0".join(sorted(table["key"].to_pylist()))
        digest = hashlib.blake2b(keys.encode(), digest_size=8).hexdigest()
        write_part(place_at(self.output) / f"{self.prefix}{digest}.parquet", table)
        report = Report()
        report.count(table)
        return pa.table({"report": [json.dumps([len(table), report.embedded, report.errors, report.failed])]})


__all__ = ["PartWriter"]
