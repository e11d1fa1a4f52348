"""Conditions on the columns of an index."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Condition = tuple[str, str, Any]
Where = Sequence[Condition] | None
OPERATORS = ("!=", "<=", ">=", "=", "<", ">")
CONDITION = re.compile(rf"\s*(.+?)\s*({'|'.join(OPERATORS)})\s*(.*?)\s*")


def parse_condition(text: str) -> Condition:
    """Parse a condition such as `year>=2020`; the value stays a text.

    Raises:
        ValueError: The text has no operator.
    """
    found = CONDITION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no condition: write COLUMN=VALUE, or {' '.join(OPERATORS)} in place of =")
    return found[1], found[2], found[3]


def allowed_rows(columns: Any, where: Sequence[Condition]) -> np.ndarray:
    """Return True for each row (N,) that meets all conditions; a null meets none.

    Raises:
        ValueError: A column or an operator is not known, or a value is of another type than its column.
    """
    allowed = np.ones(len(columns), bool)
    for name, sign, value in where:
        allowed &= _meets(columns, name, sign, value)
    return allowed


def _meets(columns: Any, name: str, sign: str, value: Any) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    comparisons: dict[str, Callable] = {
        "=": pc.equal, "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater,
        ">=": pc.greater_equal,
    }  # fmt: skip
    if name not in columns.column_names:
        raise ValueError(f"there is no column {name}: there are {', '.join(columns.column_names)}")
    if sign not in comparisons:
        raise ValueError(f"{sign!r} is no operator: use {', '.join(OPERATORS)}")
    column = columns[name]
    try:
        scalar = pa.scalar(value).cast(column.type)
        return comparisons[sign](column, scalar).fill_null(False).to_numpy().astype(bool)
    except pa.ArrowException as error:
        raise ValueError(f"the column {name} holds {column.type}, {value!r} is none: give another value") from error


__all__ = ["Condition", "Where", "allowed_rows", "parse_condition"]
