import numpy as np
import pytest

from benchmarks.vectors import two_cones, unit
from hf_clip.search import exact
from hf_clip.search.duplicates import find_duplicates


def greedy(rows: np.ndarray, threshold: float) -> dict[int, list[int]]:
    """Group one pair after the other."""
    products, groups, taken = rows @ rows.T, {}, set()
    for first in range(len(rows)):
        near = [row for row in range(first + 1, len(rows)) if products[first, row] >= threshold and row not in taken]
        if first not in taken and near:
            groups[first] = near
            taken.update(near)
    return groups


def with_repeats(count: int) -> np.ndarray:
    rows = two_cones(count, 1, 32)[0]
    noise = np.random.default_rng(1).standard_normal(rows.shape) * np.linspace(0, 0.1, count)[:, None]
    return np.random.default_rng(2).permutation(unit(np.concatenate([rows, rows + noise, rows[: count // 2]])))


@pytest.mark.parametrize("block_values", [32, 500, 1 << 20])
def test_groups_are_those_of_one_pair_after_the_other(block_values, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_VALUES", block_values)
    rows = with_repeats(60)
    groups = find_duplicates(rows, 0.97)
    assert {group.first: group.others for group in groups} == greedy(rows, 0.97)
    assert all(score >= 0.97 - 1e-6 for group in groups for score in group.scores)


def test_a_graph_finds_the_same_groups():
    pytest.importorskip("usearch")
    from hf_clip.search import graph

    rows = with_repeats(60)
    tree = graph.new_graph(32)
    graph.grow(tree, rows)
    found = {group.first: group.others for group in find_duplicates(rows, 0.97, tree)}
    assert found == greedy(rows, 0.97)


def test_without_duplicates_there_is_no_group():
    assert find_duplicates(np.eye(5, dtype=np.float32), 0.9) == []
