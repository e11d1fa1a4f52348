"""Run the callables on Arrow tables, whose columns keep their types: for Ray, and for Spark's mapInArrow."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ..embedding.parts import as_matrix, fixed_size
from .rows import as_lists, as_objects


class OnArrow:
    """Run a callable on tables: its column becomes a column of its results; all others, nulls too, stay as they are.

    Args:
        step: `ImagePreprocessor`, `ImageEmbedder` or `TextEmbedder`.
        **options: The arguments of `step`.

    Example:
        >>> dataset.map_batches(OnArrow(ImagePreprocessor, model="clip-rn50"), batch_format="pyarrow")
    """

    def __init__(self, step: Callable[..., Any], **options: Any):
        self.step = step(**options)

    def __call__(self, table: Any) -> Any:
        """Return the table with pixels or embeddings as fixed-size lists, NaN for an image with an `error`.

        Args:
            table: An Arrow table.
        """
        import pyarrow as pa

        name = self.step.column
        batch: dict[str, Any] = {name: _values(table[name])}
        if "error" in table.column_names:
            batch["error"] = as_objects(table["error"].to_pylist())
        found = self.step(batch)
        gone = [column for column in (name, "error") if column in batch and (column == "error" or column not in found)]
        table = table.drop_columns(gone).append_column(self.step.output, as_lists(found[self.step.output]))
        return table.append_column("error", pa.array(found["error"], pa.string())) if "error" in found else table


def as_rows(column: Any, row_dtype: str) -> Any:
    """Give fixed-size lists of numbers another dtype."""
    return fixed_size(as_matrix(column).astype(row_dtype))


def _values(column: Any) -> Any:
    """Give pixels their shape back; anything else is listed."""
    import pyarrow as pa

    if not (pa.types.is_fixed_size_list(column.type) and column.type.value_type == pa.uint8()):
        return as_objects(column.to_pylist())
    side = math.isqrt(column.type.list_size // 3)
    return column.combine_chunks().flatten().to_numpy().reshape(-1, 3, side, side)


def ordered(table: Any, columns: Mapping[str, Any], row_dtype: str) -> Any:
    """Select and type the columns of a part."""
    import pyarrow as pa

    kinds = {"key": pa.string(), "path": pa.string(), **columns}
    arrays = {name: table[name].cast(kind) for name, kind in kinds.items()}
    for name in ("embedding", "text_embedding"):
        if name in table.column_names:
            arrays[name] = as_rows(table[name], row_dtype)
    return pa.table({**arrays, "error": table["error"], "version": table["version"]})


__all__ = ["OnArrow", "ordered"]
