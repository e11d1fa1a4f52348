import numpy as np
import pytest

from hf_clip.search.filters import allowed_rows, parse_condition

pa = pytest.importorskip("pyarrow")


@pytest.fixture
def columns():
    return pa.table(
        {
            "year": [2019, 2020, None, 2022],
            "place": ["x", "y = z", "x", "x"],
            "tags": [["cat", "red"], [], None, ["dog"]],
            "in use": [True, False, None, True],
        }
    )


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        (["year>=2020"], [1, 3]),
        (["year != 2020"], [0, 3]),
        (["place=x", "year<2022"], [0]),
        (["place = y = z"], [1]),
        ([], [0, 1, 2, 3]),
        (["year in 2019, 2022"], [0, 3]),
        (["year not in [2019, 2020]"], [3]),
        (["year is null"], [2]),
        (["year is not null", "place = x"], [0, 3]),
        (["tags has red"], [0]),
        (["tags is null"], [2]),
        (["place=x in y"], []),
        (["in use=true"], [0, 3]),
        ([("year", "in", [2020])], [1]),
        ([("year", "in", [])], []),
    ],
)
def test_rows_meet_all_conditions(conditions, rows, columns):
    allowed = allowed_rows(columns, [parse_condition(each) if isinstance(each, str) else each for each in conditions])
    assert np.flatnonzero(allowed).tolist() == rows


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (("yaer", "=", 1), "there is no column yaer: choose from year, place, tags, in use"),
        (("year", "~", 1), "'~' is not an operator"),
        (("year", "has", "2020"), "is not of type int64"),
        (("year", "in", ["soon"]), "is not of type int64"),
        (("year", "=", "soon"), "'soon' is not of type int64, the type of the column year"),
    ],
)
def test_an_impossible_condition_is_named(condition, message, columns):
    with pytest.raises(ValueError, match=message):
        allowed_rows(columns, [condition])


def test_a_text_without_an_operator_is_no_condition():
    with pytest.raises(ValueError, match="'2020' is not a condition: write COLUMN=VALUE"):
        parse_condition("2020")
    with pytest.raises(ValueError, match=r"'\[1,' is not a JSON list"):
        parse_condition("year in [1,")
