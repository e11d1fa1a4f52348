"""Tables in memory: lists of mappings, pandas' DataFrame, and data sets of Hugging Face."""

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import DataError


def read_in_memory(data: Any) -> tuple[Iterable[Mapping[str, Any]], list[str]]:
    """Return the rows of a table in memory as mappings, and the class names that it knows.

    Args:
        data: An iterable of mappings, a DataFrame, or a `datasets.Dataset`, whose ClassLabel has the names and whose
            images stay encoded until they are opened.

    Raises:
        DataError: The data is a mapping, such as a `datasets.DatasetDict` with splits.
    """
    if isinstance(data, Mapping):
        keys = ", ".join(map(str, data))
        raise DataError(f"the data is a {type(data).__name__} of {keys}: give one of them, or rows")
    if hasattr(data, "to_dict") and hasattr(data, "iterrows"):
        return data.to_dict("records"), []
    labels: list[str] = []
    for name, feature in (getattr(data, "features", None) or {}).items():
        kind = type(feature).__name__
        if kind == "ClassLabel":
            labels = list(feature.names)
        elif kind == "Image" and getattr(feature, "decode", False):
            data = data.cast_column(name, type(feature)(decode=False))
    return data, labels


__all__ = ["read_in_memory"]
