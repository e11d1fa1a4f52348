"""The exact search equals a full sort, in any blocks."""

import numpy as np
import pytest

from benchmarks.vectors import two_cones, unit
from hf_clip.search import exact


def sorted_out(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    products = queries.astype(np.float64) @ rows.astype(np.float64).T
    return np.stack([np.lexsort((np.arange(len(rows)), -scores))[:k] for scores in products])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("block_values", [1, 1000, 1 << 20])
def test_nearest_rows_are_those_of_a_full_sort(dtype, block_values, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_VALUES", block_values)
    rows, queries = two_cones(500, 8, 32)
    rows = rows.astype(dtype)
    scores, found = exact.nearest(rows, queries, 20)
    assert np.array_equal(found, sorted_out(rows, queries, 20))
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("block_values", [1, 20, 1 << 20])
def test_a_query_alone_finds_what_it_finds_among_others(dtype, block_values, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_VALUES", block_values)
    rows, queries = two_cones(2000, 8, 32)
    rows = rows.astype(dtype)
    allowed = np.arange(len(rows)) % 2 == 0
    for query in queries[:, None]:
        assert np.array_equal(exact.nearest(rows, query, 20)[1], sorted_out(rows, query, 20))
        assert np.array_equal(exact.nearest(rows, query, 20, allowed)[1], 2 * sorted_out(rows[allowed], query, 20))


def test_what_float16_cannot_tell_apart_is_told_apart():
    rng = np.random.default_rng(0)
    rows, queries = unit(rng.standard_normal((10_000, 32))).astype(np.float16), unit(rng.standard_normal((4, 32)))
    for query in queries[:, None]:  # the last of so many has a product near 0, where rounding of the query weighs most
        assert np.array_equal(exact.nearest(rows, query, 5000)[1], sorted_out(rows, query, 5000))


@pytest.mark.slow
def test_a_hundred_thousand_rows_give_the_order_of_a_full_sort():
    rows, queries = two_cones(100_000, 8, 512)
    assert np.array_equal(exact.nearest(rows, queries, 20)[1], sorted_out(rows, queries, 20))


def test_equal_rows_come_in_their_order_across_blocks(monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_VALUES", 64)
    rows = np.repeat(two_cones(3, 1, 16)[0], 50, 0)
    scores, found = exact.nearest(rows, rows[:1], 70)
    assert found[0, :50].tolist() == list(range(50))
    assert len(set(scores[0, :50])) == 1


def test_only_allowed_rows_are_found():
    rows, queries = two_cones(100, 2, 16)
    allowed = np.arange(100) % 7 == 3
    _, found = exact.nearest(rows, queries, 50, allowed)
    assert found.shape == (2, allowed.sum())
    assert (found % 7 == 3).all()
    assert exact.nearest(rows, queries, 5, np.zeros(100, bool))[1].shape == (2, 0)


def test_a_map_of_rows_stays_on_disk(tmp_path):
    np.save(tmp_path / "rows.npy", two_cones(1000, 1, 64)[0])
    rows = np.load(tmp_path / "rows.npy", mmap_mode="c")
    assert exact.nearest(rows, np.asarray(rows[17:18]), 1)[1] == [[17]]
