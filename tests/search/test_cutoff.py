import numpy as np
import pytest

from hf_clip.search.cutoff import CHANCE, expected_by_chance, stand_out

DIM = 64


def collection(rows: int, matches: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors of which the first `matches` are near the query, the query, and a bank."""
    rng = np.random.default_rng(0)
    query, *bank = rng.normal(size=(4, DIM))
    values = rng.normal(size=(rows, DIM)) + 0.5 * bank[0]
    values[:matches] += 1.2 * query
    return *(part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (values, query)), np.stack(bank) / 8


def test_matches_stand_out_and_an_absent_query_finds_nothing():
    for matches in (0, 30):
        rows, query, bank = collection(2000, matches)
        found = np.argsort(-rows @ query)[:100]
        chance = expected_by_chance(rows, query, bank, found)
        kept = found[stand_out(chance)]
        assert len(set(kept) & set(range(matches))) >= 0.9 * matches
        assert len(kept) <= matches + 4
        assert (np.diff(np.sort(chance)) >= 0).all()


def test_the_expected_number_is_that_of_a_normal_tail():
    """Half of the images lie above the median, a 44th above two deviations."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=5000), np.zeros(5000)], 1)
    query, bank = np.array([1.0, 0]), np.zeros((1, 2))
    found = np.argsort(-rows[:, 0])[[2500, 114]]
    assert expected_by_chance(rows, query, bank, found) == pytest.approx([2500, 114], rel=0.15)


def test_the_share_of_chance_is_kept():
    assert stand_out(np.array([5.0, 0.01, 0.15, 3.0])).tolist() == [False, True, True, False]
    assert stand_out(np.array([5.0, 0.01, 0.15, 3.0]), 3).tolist() == [False, True, True, True]
    # the third of three may have CHANCE times three
    assert stand_out(np.array([0.29, 0.28, 0.05])).all()
    assert CHANCE == 0.1
    assert not stand_out(np.array([1.0, 2.0])).any()
    assert stand_out(np.zeros(0)).shape == (0,)


def test_conditions_make_a_smaller_collection():
    rows, query, bank = collection(400, 10)
    allowed = np.arange(400) < 200
    inner = expected_by_chance(rows[:200], query, bank, np.arange(5))
    assert expected_by_chance(rows, query, bank, np.arange(5), allowed) == pytest.approx(inner)


def test_collections_that_nothing_stands_out_from():
    rows, query, bank = collection(19, 0)
    with pytest.raises(ValueError, match="19 images are too few to tell which stand out"):
        expected_by_chance(rows, query, bank, np.arange(3))
    with pytest.raises(ValueError, match="half of the images or more have the same score"):
        expected_by_chance(np.repeat(rows[:1], 40, 0), query, bank, np.arange(3))
