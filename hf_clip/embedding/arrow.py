"""Embeddings in Arrow tables: columns of fixed-size lists, parts, and the callables on tables whose types stay."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..utils.text import as_line

# columns that tell which images a model has seen in another way than people, named as no column of a source is
SURPRISES = ("hf_clip:rotated", "hf_clip:sixteen_bits")


class OnArrow:
    """Run a callable on Arrow tables, for Ray's `map_batches` and Spark's `mapInArrow`.

    The callable's column becomes a column of its results; all others, nulls too, keep their values and types.

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
        table = table.drop_columns(gone).append_column(self.step.output, fixed_size(found[self.step.output]))
        for surprise in SURPRISES:
            if surprise in found:
                table = table.append_column(surprise, pa.array(found[surprise]))
        return table.append_column("error", pa.array(found["error"], pa.string())) if "error" in found else table


def _values(column: Any) -> Any:
    """Reshape a column of pixels to (B, 3, side, side); list any other column."""
    import pyarrow as pa

    if not (pa.types.is_fixed_size_list(column.type) and column.type.value_type == pa.uint8()):
        return as_objects(column.to_pylist())
    side = math.isqrt(column.type.list_size // 3)
    return column.combine_chunks().flatten().to_numpy().reshape(-1, 3, side, side)


def part_table(columns: Any, kinds: Mapping[str, Any], row_dtype: str) -> Any:
    """Make the table of a part: its columns in their order, with their types.

    Args:
        columns: A batch of columns, or an Arrow table, with `key`, `path`, `version`, `embedding`, `error` and perhaps
            `text_embedding`.
        kinds: The Arrow types of the source's columns.
        row_dtype: The dtype of stored embeddings.
    """
    import pyarrow as pa

    given = columns.column_names if isinstance(columns, pa.Table) else columns
    text = pa.string()
    kinds = {"key": text, "path": text, **kinds, "embedding": None, "text_embedding": None}
    kinds |= {"error": text, "version": text}
    return pa.table({n: _typed(columns[n], kind, row_dtype) for n, kind in kinds.items() if n in given})


def _typed(column: Any, kind: Any, row_dtype: str) -> Any:
    import pyarrow as pa

    is_arrow = isinstance(column, pa.ChunkedArray)
    if kind is None:
        return fixed_size((as_matrix(column) if is_arrow else np.asarray(column)).astype(row_dtype))
    return column.cast(kind) if is_arrow else pa.array(list(column), kind)


def fixed_size(values: np.ndarray) -> Any:
    """Turn rows of any shape, (N, ...), into an Arrow array of N fixed-size lists."""
    import pyarrow as pa

    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def as_matrix(column: Any) -> np.ndarray:
    """Turn a column of fixed-size lists without nulls into rows (N, dim)."""
    column = column.combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    if column.null_count or len(values) % max(len(column), 1):
        raise ValueError("the embeddings are of different lengths, or some are null: embed the images again")
    return values.reshape(len(column), -1)


def as_objects(values: Iterable[Any]) -> np.ndarray:
    """Make a column of any values, lists among them."""
    values = list(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def batch_of(located: Iterable[Any], columns: Iterable[str]) -> dict[str, Any]:
    """List images of a source by column: key, path, version, and the source's own.

    Args:
        located: References, each with its values in the source's columns.
        columns: The names of these columns.
    """
    located = list(located)
    batch: dict[str, Any] = {"key": [], "path": [], "version": []}
    for image, _ in located:
        batch["key"].append(image.key)
        batch["path"].append(as_line(image.name))
        batch["version"].append(image.version)
    return {**batch, **{name: [values.get(name) for _, values in located] for name in columns}}


__all__ = ["SURPRISES", "OnArrow", "as_matrix", "as_objects", "batch_of", "fixed_size", "part_table"]
