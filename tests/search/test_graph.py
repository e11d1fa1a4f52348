"""The graph reaches the recall that is asked for, on texts."""

from functools import partial

import numpy as np
import pytest

from benchmarks.vectors import two_cones

pytest.importorskip("usearch")
from hf_clip.search import exact, graph
from hf_clip.search.tuning import recall, tune


def built(rows: np.ndarray):
    tree = graph.new_graph(rows.shape[1])
    graph.grow(tree, rows)
    return tree


def recall_with(tree, rows: np.ndarray, queries: np.ndarray, expansion: int) -> float:
    expected = exact.nearest(rows, queries, 10)[1]
    return recall(graph.nearest_in_graph(tree, rows, queries, 10, expansion)[1], expected)


@pytest.mark.parametrize("count", [4000, pytest.param(100_000, marks=pytest.mark.exhaustive)])
def test_a_graph_tuned_on_images_misses_what_texts_look_for(count, monkeypatch):
    if count < 10_000:  # so few rows show it in a poor graph only, and many are not found in one
        monkeypatch.setattr(graph, "CONNECTIVITY", 8)
        monkeypatch.setattr(graph, "EXPANSION_ADD", 32)
    dim = 64 if count < 10_000 else 512
    images, texts = two_cones(count, 400, dim)
    tree = built(images)
    search = partial(graph.nearest_in_graph, tree, images)
    on_images, _ = tune(search, images, two_cones(count, 200, dim)[0][:200], 0.95)
    on_texts, measured = tune(search, images, texts[:200], 0.95)
    assert measured >= 0.95
    assert recall_with(tree, images, texts[200:], on_images) < 0.93
    assert recall_with(tree, images, texts[200:], on_texts) >= 0.94
    assert on_texts > on_images


def test_found_rows_are_ranked_by_the_stored_ones():
    rows, queries = two_cones(500, 5, 32)
    tree = built(rows)
    scores, found = graph.nearest_in_graph(tree, rows, queries, 10, 500)
    expected = exact.nearest(rows, queries, 10)
    assert np.array_equal(found, expected[1])
    assert np.array_equal(scores, expected[0])


def test_threads_hide_no_row_from_a_search():
    rows, queries = two_cones(3000, 1, 32)
    for _ in range(3):  # without care, more than half of such graphs hide some
        assert len(set(built(rows).search(queries[0], len(rows)).keys)) == len(rows)


def test_a_graph_opened_again_grows_by_what_is_new(tmp_path):
    rows = two_cones(600, 1, 32)[0]
    built(rows[:500]).save(str(tmp_path / "graph"))
    tree = graph.open_graph(tmp_path / "graph", copy=True)
    added = []
    add = tree.add
    tree.add = lambda keys, rows, **how: added.append(len(keys)) or add(keys, rows, **how)
    graph.grow(tree, rows)
    assert added[0] == 100
    assert len(tree) == 600


def test_a_graph_without_some_rows_finds_the_others_by_their_new_numbers(tmp_path):
    rows, queries = two_cones(600, 5, 32)
    tree = built(rows[:500])
    kept = np.arange(500) % 5 != 0
    graph.drop(tree, kept)
    assert len(tree) == 400
    rows = np.concatenate([rows[:500][kept], rows[500:]])
    graph.grow(tree, rows)
    tree.save(str(tmp_path / "graph"))
    for opened in (tree, graph.open_graph(tmp_path / "graph")):
        found = graph.nearest_in_graph(opened, rows, queries, 10, 500)[1]
        assert np.array_equal(found, exact.nearest(rows, queries, 10)[1])


def test_a_recall_out_of_reach_is_measured_and_told():
    rows, queries = two_cones(50, 5, 8)
    assert tune(partial(graph.nearest_in_graph, built(rows), rows), rows, queries, 1.1) == (64, 1.0)


def test_a_broken_graph_is_named(tmp_path):
    (tmp_path / "graph").write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"graph is no graph of usearch"):
        graph.open_graph(tmp_path / "graph")
