import numpy as np
import pytest

from hf_clip.search.filters import allowed_rows, parse_condition

pa = pytest.importorskip("pyarrow")


@pytest.fixture
def columns():
    return pa.table({"year": [2019, 2020, None, 2022], "place": ["x", "y = z", "x", "x"]})


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        (["year>=2020"], [1, 3]),
        (["year != 2020"], [0, 3]),
        (["place=x", "year<2022"], [0]),
        (["place = y = z"], [1]),
        ([], [0, 1, 2, 3]),
    ],
)
def test_rows_meet_all_conditions(conditions, rows, columns):
    allowed = allowed_rows(columns, [parse_condition(condition) for condition in conditions])
    assert np.flatnonzero(allowed).tolist() == rows


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (("yaer", "=", 1), "there is no column yaer: there are year, place"),
        (("year", "~", 1), "'~' is no operator"),
        (("year", "=", "soon"), "the column year holds int64, 'soon' is none"),
    ],
)
def test_an_impossible_condition_is_named(condition, message, columns):
    with pytest.raises(ValueError, match=message):
        allowed_rows(columns, [condition])


def test_a_text_without_an_operator_is_no_condition():
    with pytest.raises(ValueError, match="'2020' is no condition: write COLUMN=VALUE"):
        parse_condition("2020")
