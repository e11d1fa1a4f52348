"""JSON of strangers: an object with fields of the right types, or one sentence."""

import pytest

from hf_clip.utils.objects import check_fields, parse_object

FIELDS = {"name": str, "size": int, "share": int | float, "good": bool, "folder": str | None, "probe": [int | float]}
RIGHT = {"name": "a", "size": 3, "share": 1.5, "good": True, "folder": None, "probe": [1, 2.5]}


def test_what_fits_is_returned_with_all_that_is_beside_it():
    text = b'{"name": "a", "other": [1]}'
    assert parse_object(text, {"name": str}) == {"name": "a", "other": [1]}
    check_fields(RIGHT, FIELDS)


NO_OBJECTS = ["5", "null", "[]", "[" * 100_000, '{"a":' * 100_000, "{", "\0", '{"name": 5}', "{}"]


@pytest.mark.parametrize("text", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_what_is_no_object_of_the_fields_is_refused(text):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_object(text, {"name": str})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 5), ("name", None), ("name", ["a"]), ("size", 1.5), ("size", True), ("size", "3"), ("size", 10**400),
        ("share", float("nan")), ("share", float("inf")), ("share", "1"), ("share", False), ("good", 1), ("folder", 5),
        ("probe", 5), ("probe", "12"), ("probe", [1, "2"]), ("probe", [float("nan")]), ("probe", {"a": 1}),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named(name, value):
    with pytest.raises(ValueError, match=f"^its {name} is "):
        check_fields({**RIGHT, name: value}, FIELDS)
