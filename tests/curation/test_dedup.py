"""Semantic deduplication equals the rule pair by pair, in one run or in several."""

import numpy as np
import pytest
from support.embeddings import kept_rows, write_parts

from benchmarks.vectors import two_cones, unit
from hf_clip.curation import dedup, selected
from hf_clip.curation.dedup import Clusters, cluster_rows, drop_duplicates, semantic_duplicates
from hf_clip.embedding.stores import StoreError

THRESHOLD = 0.97


def with_copies(count: int, dim: int = 16) -> np.ndarray:
    rows = two_cones(count, 1, dim)[0]
    noise = np.random.default_rng(1).standard_normal(rows.shape) * np.linspace(0, 0.1, count)[:, None]
    return np.random.default_rng(2).permutation(unit(np.concatenate([rows, rows + noise])))


ROWS = with_copies(60)


def brute(rows: np.ndarray, threshold: float, clusters: Clusters, keep: str = "far") -> np.ndarray:
    """The paper's code in NumPy: the largest cosine with an earlier member of the sorted cluster."""
    dropped = np.zeros(len(rows), bool)
    for number in np.unique(clusters.numbers):
        members = np.flatnonzero(clusters.numbers == number)
        distance = 1 - clusters.similarity[members]
        members = members[np.argsort(-distance if keep == "far" else distance, kind="stable")]
        cosines = np.triu(rows[members].astype(np.float64) @ rows[members].T.astype(np.float64), 1)
        dropped[members] = cosines.max(0) >= threshold - 1e-6
    return dropped


@pytest.mark.parametrize("keep", ["far", "near"])
@pytest.mark.parametrize("clusters", [1, 5])
def test_equals_the_rule_pair_by_pair(clusters, keep):
    found = cluster_rows(ROWS, clusters)
    dropped = semantic_duplicates(ROWS, THRESHOLD, found, keep)
    assert np.array_equal(dropped, brute(ROWS, THRESHOLD, found, keep))
    assert 20 < dropped.sum() < 100


@pytest.mark.exhaustive
def test_equals_the_rule_on_100_000_rows():
    rows = with_copies(50_000, 64)
    found = cluster_rows(rows, 40)
    dropped = semantic_duplicates(rows, THRESHOLD, found)
    assert np.array_equal(dropped, brute(rows, THRESHOLD, found))
    assert 1_000 < dropped.sum() < 99_000


def test_rows_are_in_the_cluster_of_their_nearest_centroid():
    found = cluster_rows(ROWS, 4)
    assert set(found.numbers) <= set(range(4))
    axes = np.stack([unit(ROWS[found.numbers == number].mean(0)) for number in range(4)])
    assert ((ROWS @ axes.T).argmax(1) == found.numbers).mean() > 0.9
    # one cluster's centroid is the mean direction
    one = cluster_rows(ROWS, 1)
    np.testing.assert_allclose(one.similarity, ROWS @ unit(ROWS.mean(0)), atol=1e-5)


def test_clusters_are_reproducible():
    assert np.array_equal(cluster_rows(ROWS, 6, seed=1).numbers, cluster_rows(ROWS, 6, seed=1).numbers)
    assert not np.array_equal(cluster_rows(ROWS, 6, seed=1).numbers, cluster_rows(ROWS, 6, seed=2).numbers)


def test_the_output_has_the_rows_that_are_left(tmp_path):
    rows = ROWS.copy()
    rows[11] = np.nan
    source = write_parts(tmp_path / "source", rows, part_rows=25)
    found = drop_duplicates(str(source), str(tmp_path / "kept"), THRESHOLD, clusters=3)
    good = np.flatnonzero(~np.isnan(rows).any(1))
    dropped = brute(rows[good], THRESHOLD, cluster_rows(rows[good], 3))
    assert kept_rows(tmp_path / "kept").keys() == {f"{row:06}.png" for row in good[~dropped]}
    assert (found.rows, found.kept) == (119, int((~dropped).sum()))
    assert {path.name for path in (tmp_path / "kept").iterdir() if not path.name.startswith("part-")} == {
        "_hf_clip.json"
    }


def test_rows_of_any_length_are_compared_by_direction(tmp_path):
    source = write_parts(tmp_path / "source", ROWS, part_rows=25)
    longer = write_parts(tmp_path / "longer", ROWS * np.float32(4), part_rows=25, normalized=False)
    for place in (source, longer):
        drop_duplicates(str(place), str(place.with_suffix(".kept")), THRESHOLD, clusters=3)
    assert kept_rows(source.with_suffix(".kept")).keys() == kept_rows(longer.with_suffix(".kept")).keys()


def test_half_precision_rows(tmp_path):
    source = write_parts(tmp_path / "source", ROWS.astype(np.float16))
    found = drop_duplicates(str(source), str(tmp_path / "kept"), THRESHOLD)
    assert found.rows - found.kept == pytest.approx(brute(ROWS, THRESHOLD, cluster_rows(ROWS, 1)).sum(), abs=2)


@pytest.mark.parametrize("stopped", ["comparing", "writing"])
def test_a_killed_run_goes_on_to_equal_rows(stopped, tmp_path, monkeypatch):
    source = write_parts(tmp_path / "source", ROWS)
    drop_duplicates(str(source), str(tmp_path / "one"), THRESHOLD, clusters=3)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((dedup, "repeated_rows") if stopped == "comparing" else (selected, "write_part")), stop)
        with pytest.raises(KeyboardInterrupt):
            drop_duplicates(str(source), str(tmp_path / "kept"), THRESHOLD, clusters=3)
    if stopped == "writing":  # what was compared is not compared again
        monkeypatch.setattr(dedup, "cluster_rows", stop)
    drop_duplicates(str(source), str(tmp_path / "kept"), THRESHOLD, clusters=3)
    assert kept_rows(tmp_path / "kept") == kept_rows(tmp_path / "one")


def test_equal_embeddings_leave_one(tmp_path):
    source = write_parts(tmp_path / "source", np.repeat(ROWS[:1], 30, 0))
    assert drop_duplicates(str(source), str(tmp_path / "kept"), THRESHOLD).kept == 1


def test_bad_input_is_one_sentence(tmp_path):
    source = write_parts(tmp_path / "source", ROWS[:9])
    empty = write_parts(tmp_path / "empty", np.full((2, 4), np.nan, np.float32))
    for place, threshold, options, error, message in (
        (source, 1.5, {}, ValueError, "threshold is 1.5: give a cosine above 0, at most 1"),
        (source, 0.9, {"clusters": 10}, ValueError, "clusters is 10: give a number from 1 to the 9 rows"),
        (empty, 0.9, {}, StoreError, "empty has no embedding"),
    ):
        with pytest.raises(error, match=message):
            drop_duplicates(str(place), str(tmp_path / "kept"), threshold, **options)
    assert not (tmp_path / "kept").exists()
