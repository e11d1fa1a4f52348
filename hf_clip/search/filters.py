"""Conditions on the columns of an index, such as year>=2020."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Condition = tuple[str, str, Any]
Where = Sequence[Condition] | None
SIGNS = ("!=", "<=", ">=", "=", "<", ">")
CONDITION_WORDS = ("not in", "in", "is null", "is not null", "has")
COMPARISON = re.compile(rf"\s*(.+?)\s*({'|'.join(SIGNS)})\s*(.*?)\s*", re.DOTALL)
# the name of a column may be any text, so words count only between spaces
MEMBERSHIP = re.compile(r"\s*(\S.*?)\s+(not in|in|has)\s+(.+?)\s*", re.DOTALL)
NULLNESS = re.compile(r"\s*(\S.*?)\s+(is null|is not null)\s*", re.DOTALL)


def parse_condition(text: str) -> Condition:
    """Parse a condition on one column.

    Args:
        text: `year>=2020` (=, !=, <, <=, >, >=), `year in 2020,2021`, `year not in [2020, 2021]`, `caption is null`,
            `caption is not null`, or `tags has cat` for a column of lists.

    Returns:
        Column, operator and value; values are texts, converted to the type of the column by `allowed_rows`.

    Raises:
        ValueError: The text has no operator.
    """
    if found := NULLNESS.fullmatch(text):
        return found[1], found[2], None
    found = COMPARISON.fullmatch(text)
    member = MEMBERSHIP.fullmatch(text)
    if member and (found is None or member.end(1) < found.end(1)):
        return member[1], member[2], member[3] if member[2] == "has" else _values(member[3])
    if found is None:
        raise ValueError(
            f"{text!r} is not a condition: write COLUMN=VALUE, one of {' '.join(SIGNS)}, or COLUMN followed by "
            f"{', '.join(CONDITION_WORDS)}"
        )
    return found[1], found[2], found[3]


def _values(text: str) -> list[Any]:
    """Split the values of `in`: a JSON list, or texts between commas."""
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is not a JSON list: write [1, 2] or 1,2") from error
    return [part.strip() for part in text.split(",")]


def allowed_rows(columns: Any, where: Sequence[Condition]) -> np.ndarray:
    """Return True for each row (N,) that meets all conditions; null meets only `is null`.

    Raises:
        ValueError: A column or an operator is unknown, or a value does not have the type of its column.
    """
    allowed = np.ones(len(columns), bool)
    for name, sign, value in where:
        allowed &= _meets(columns, name, sign, value)
    return allowed


def _meets(columns: Any, name: str, sign: str, value: Any) -> np.ndarray:
    import pyarrow as pa

    if name not in columns.column_names:
        raise ValueError(f"there is no column {name}: choose from {', '.join(columns.column_names)}")
    test = _tests().get(sign)
    if test is None:
        raise ValueError(f"{sign!r} is not an operator: choose from {', '.join((*SIGNS, *CONDITION_WORDS))}")
    column = columns[name]
    try:
        return test(column, value).fill_null(False).to_numpy().astype(bool)
    except pa.ArrowException as error:
        raise ValueError(f"{value!r} is not of type {column.type}, the type of the column {name}: change it") from error


def _tests() -> dict[str, Callable[[Any, Any], Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    def compare(function: Callable) -> Callable[[Any, Any], Any]:
        return lambda column, value: function(column, pa.scalar(value).cast(column.type))

    def is_in(column: Any, values: Any) -> Any:
        return pc.is_in(column, pa.array(list(values), None if values else column.type).cast(column.type))

    def has(column: Any, value: Any) -> Any:
        if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
            raise pa.ArrowTypeError("not a list")
        wanted = pa.scalar(value).cast(column.type.value_type)
        hits = pc.equal(pc.list_flatten(column), wanted).fill_null(False)
        found = np.zeros(len(column), bool)
        found[pc.list_parent_indices(column).filter(hits).to_numpy()] = True
        return pa.chunked_array([pa.array(found)])

    return {
        "=": compare(pc.equal),
        "==": compare(pc.equal),
        "!=": compare(pc.not_equal),
        "<": compare(pc.less),
        "<=": compare(pc.less_equal),
        ">": compare(pc.greater),
        ">=": compare(pc.greater_equal),
        "in": is_in,
        # null is neither in nor outside a list, as in SQL
        "not in": lambda column, values: pc.and_(pc.is_valid(column), pc.invert(is_in(column, values))),
        "is null": lambda column, _: pc.is_null(column),
        "is not null": lambda column, _: pc.is_valid(column),
        "has": has,
    }


__all__ = ["Condition", "Where", "allowed_rows", "parse_condition"]
