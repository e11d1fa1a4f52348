"""A scan of 8-bit codes finds the nearest rows, and ranks them by the rows themselves."""

from functools import partial

import numpy as np
import pytest

from benchmarks.vectors import two_cones
from hf_clip.search import codes, exact
from hf_clip.search.tuning import recall, tune

pytest.importorskip("numkong")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("at_once", [7, 1 << 20])
def test_few_candidates_find_nearly_all(dtype, at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(codes, "SCANNED_AT_ONCE", at_once)
    rows, queries = two_cones(3000, 32, 64)
    rows = rows.astype(dtype)
    rows[:, 3] = rows[0, 3]  # a column of equal numbers
    made = codes.write_codes(rows, tmp_path / "codes.npy")
    assert made.values.nbytes * np.dtype(dtype).itemsize == rows.nbytes
    scores, found = codes.nearest_by_codes(made, rows, queries, 10, 32)
    expected = exact.nearest(rows, queries, 10)
    assert recall(found, expected[1]) >= 0.99
    np.testing.assert_array_equal(scores[found == expected[1]], expected[0][found == expected[1]])
    assert np.array_equal(codes.nearest_by_codes(made, rows, queries, 10, 3000)[1], expected[1])


def test_codes_are_within_half_a_step_of_the_rows(tmp_path):
    rows = two_cones(500, 1, 32)[0]
    made = codes.write_codes(rows, tmp_path / "codes.npy")
    assert (np.abs(made.center + made.scale * made.values - rows) <= made.scale * 0.501).all()
    assert made.values.min() == -codes.LEVELS
    assert made.values.max() == codes.LEVELS


def test_equal_rows_come_in_their_order(tmp_path):
    rows = np.repeat(two_cones(1, 1, 16)[0], 9, 0)
    made = codes.write_codes(rows, tmp_path / "codes.npy")
    assert codes.nearest_by_codes(made, rows, rows[:1], 9, 32)[1].tolist() == [list(range(9))]


def test_more_rows_than_there_are_give_all(tmp_path):
    rows, queries = two_cones(5, 2, 16)
    made = codes.write_codes(rows, tmp_path / "codes.npy")
    assert np.array_equal(codes.nearest_by_codes(made, rows, queries, 9, 32)[1], exact.nearest(rows, queries, 9)[1])


def test_the_fewest_candidates_that_reach_the_recall_are_taken(tmp_path):
    rows, queries = two_cones(3000, 32, 64)
    made = codes.write_codes(rows, tmp_path / "codes.npy")
    expansion, measured = tune(partial(codes.nearest_by_codes, made, rows), rows, queries, 0.99)
    assert expansion == 32
    assert measured >= 0.99
