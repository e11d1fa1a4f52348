"""JSON objects of files that strangers made: fields have the types that their readers expect, or are refused."""

import json
import math
from collections.abc import Mapping
from typing import Any

SHOWN_CHARACTERS = 60


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; raise ValueError for whatever cannot be parsed, nesting that is too deep among it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def parse_object(text: str | bytes, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Parse a JSON object with at least these fields, as `check_fields` describes them.

    Raises:
        ValueError: It is no object, or a field is missing or of another type.
    """
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    check_fields(found, fields or {})
    return found


def check_fields(values: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Raise ValueError unless each field has a value of its type.

    Args:
        values: A JSON object.
        fields: For each name a type, several joined by |, or [type] for a list of values of that type. A number is
            finite, and no truth value.
    """
    for name, kind in fields.items():
        value = values.get(name)
        if isinstance(kind, list):
            valid = isinstance(value, list) and all(_is_a(each, kind[0]) for each in value)
        else:
            valid = _is_a(value, kind)
        if not valid:
            raise ValueError(f"its {name} is {repr(value)[:SHOWN_CHARACTERS]}")


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    # an integer of a thousand digits is a number to JSON, and to nothing else
    is_number = isinstance(value, int | float)
    return isinstance(value, kind) and (not is_number or (abs(value) <= 1e308 and math.isfinite(value)))


__all__ = ["check_fields", "parse_json", "parse_object"]
