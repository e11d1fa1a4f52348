import os

import numpy as np
import pytest
from PIL import Image

from benchmarks.vectors import two_cones, unit
from hf_clip.data.images import ImageRef
from hf_clip.search import exact
from hf_clip.search.duplicates import find_duplicates, preferred_order, read_file_facts, repeated_rows


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
    assert {group.keeper: group.others for group in groups} == greedy(rows, 0.97)
    assert all(score >= 0.97 - 1e-6 for group in groups for score in group.scores)


def test_a_graph_finds_the_same_groups():
    pytest.importorskip("usearch")
    from hf_clip.search import graph

    rows = with_repeats(60)
    tree = graph.new_graph(32)
    graph.grow(tree, rows)
    found = {group.keeper: group.others for group in find_duplicates(rows, 0.97, tree)}
    assert found == greedy(rows, 0.97)


def test_without_duplicates_there_is_no_group():
    assert find_duplicates(np.eye(5, dtype=np.float32), 0.9) == []


@pytest.mark.parametrize("block_values", [32, 500, 1 << 20])
def test_repeated_rows_have_any_row_before_them(block_values, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK_VALUES", block_values)
    rows, order = with_repeats(60), np.random.default_rng(3).permutation(150)
    cosines = np.triu(rows[order] @ rows[order].T, 1)
    assert set(repeated_rows(rows, 0.97, order)) == set(order[cosines.max(0) >= 0.97])


def test_a_chain_leaves_its_first_row():
    angles = np.arange(6) * np.arccos(0.985)
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert repeated_rows(rows, 0.98, range(6)).tolist() == [1, 2, 3, 4, 5]


def test_of_a_chain_only_the_images_near_the_keeper_are_its_copies():
    angles = np.arange(6) * np.arccos(0.985)
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    groups = find_duplicates(rows, 0.98)
    assert {group.keeper: group.others for group in groups} == {0: [1], 2: [3], 4: [5]}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exact_copies_reach_a_threshold_of_one(dtype):
    rows = np.concatenate([two_cones(100, 1, 512)[0]] * 3).astype(dtype)
    groups = find_duplicates(rows, 1.0)
    assert {group.keeper: group.others for group in groups} == {row: [row + 100, row + 200] for row in range(100)}


@pytest.mark.parametrize("threshold", [1.0, 0.98])
def test_a_graph_finds_groups_of_any_size(threshold):
    pytest.importorskip("usearch")
    from hf_clip.search import graph

    base, rng = two_cones(1500, 1, 32)[0], np.random.default_rng(0)
    noisy = unit(base[2] + rng.standard_normal((300, 32)) * 0.005)
    rows = rng.permutation(np.concatenate([base, np.repeat(base[:1], 998, 0), np.repeat(base[1:2], 70, 0), noisy]))
    tree = graph.new_graph(32)
    graph.grow(tree, rows)
    assert find_duplicates(rows, threshold, tree) == find_duplicates(rows, threshold)
    assert max(len(group.others) for group in find_duplicates(rows, threshold, tree)) == 998


def test_the_order_decides_which_image_is_kept():
    rows = np.eye(4, dtype=np.float32)[[0, 1, 0, 0, 2]]
    assert [(group.keeper, group.others) for group in find_duplicates(rows, 0.9, order=[3, 0, 1, 2, 4])] == [
        (3, [0, 2])
    ]
    assert [(group.keeper, group.others) for group in find_duplicates(rows, 0.9, order=[3, 1, 4, 0])] == [(3, [0])]


def test_the_largest_image_is_kept_then_the_oldest_and_links_are_one_file(tmp_path):
    for name, side, age in (("a", 20, 1), ("b", 40, 3), ("c", 40, 2), ("z", 30, 0)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
        os.utime(tmp_path / f"{name}.png", (age, age))
    (tmp_path / "0.png").symlink_to("z.png")
    (tmp_path / "1.png").hardlink_to(tmp_path / "c.png")
    names = ["0", "1", "a", "b", "c", "gone", "z"]
    facts = read_file_facts([ImageRef.of(tmp_path / f"{name}.png") for name in names])
    assert [names[row] for row in preferred_order(facts)] == ["1", "b", "0", "a", "gone"]
    assert [each.pixels for each in facts] == [900, 1600, 400, 1600, 1600, 0, 900]
