"""The filter keeps what DataComp's rule keeps, in one run or in several."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.embeddings import kept_rows, write_parts

from benchmarks.vectors import two_cones
from hf_clip.curation import selected
from hf_clip.curation.clip_score import clip_scores, filter_pairs, top_threshold
from hf_clip.embedding.parts import Shard
from hf_clip.embedding.reading import open_embeddings
from hf_clip.embedding.stores import StoreError

IMAGES, TEXTS = two_cones(45, 45, 16)


@pytest.fixture
def pairs(tmp_path):
    """45 pairs in 5 parts; one image failed, one has no caption."""
    images, texts = IMAGES.copy(), TEXTS.copy()
    images[7], texts[20] = np.nan, np.nan
    return write_parts(tmp_path / "pairs", images, texts)


def test_a_part_without_texts_is_named(pairs, tmp_path):
    part = max(pairs.glob("part-*"))
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["text_embedding"]), part)
    with pytest.raises(StoreError, match=rf"{part.name} has no column text_embedding"):
        filter_pairs(str(pairs), str(tmp_path / "out"), min_score=0.1)


def expected(threshold: float) -> dict[str, float]:
    """Scores by key of the pairs that reach the threshold, one pair after the other."""
    scores = {n: float(np.float64(IMAGES[n]) @ np.float64(TEXTS[n])) for n in range(45) if n not in (7, 20)}
    return {f"{number:06}.png": score for number, score in scores.items() if score >= threshold}


def scores_of(folder) -> dict[str, float]:
    return {key: row["clip_score"] for key, row in kept_rows(folder).items()}


def datacomp_threshold(scores: np.ndarray, fraction: float) -> float:
    return -np.sort(-scores)[int(len(scores) * fraction)]


def test_the_score_is_the_cosine_whatever_the_lengths():
    found = clip_scores(3 * IMAGES, TEXTS / 2)
    np.testing.assert_allclose(found, [a @ b for a, b in zip(IMAGES, TEXTS, strict=True)], atol=1e-6)
    assert np.array_equal(found[:10], clip_scores(3 * IMAGES[:10], TEXTS[:10] / 2))


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.99])
def test_the_threshold_is_that_of_datacomp(fraction):
    scores = np.random.default_rng(0).standard_normal(1000).round(2)  # with equal ones
    assert top_threshold(scores, fraction) == datacomp_threshold(scores, fraction)


def test_the_whole_fraction_keeps_all():
    assert top_threshold(np.array([3.0, 1.0, 2.0]), 1.0) == 1.0


def test_a_least_score_keeps_the_pairs_that_reach_it(pairs, tmp_path):
    least = float(np.mean(sorted(expected(-1).values())[20:22]))
    found = filter_pairs(str(pairs), str(tmp_path / "kept"), min_score=least)
    assert scores_of(tmp_path / "kept") == pytest.approx(expected(least), abs=1e-7)
    assert (found.selection.rows, found.selection.kept, found.without_text) == (44, len(expected(least)), 1)
    row = kept_rows(tmp_path / "kept")["000000.png"]
    assert row["caption"] == "caption of 000000.png"
    assert np.array_equal(np.float32(row["embedding"]), IMAGES[0])


def test_a_fraction_keeps_the_best(pairs, tmp_path):
    found = filter_pairs(str(pairs), str(tmp_path / "kept"), top=0.2)
    scores = sorted(expected(-1).values(), reverse=True)
    assert found.threshold == pytest.approx(scores[int(43 * 0.2)], abs=1e-7)
    assert sorted(scores_of(tmp_path / "kept").values(), reverse=True) == pytest.approx(scores[:9], abs=1e-7)


def test_shards_keep_what_one_run_keeps(pairs, tmp_path):
    filter_pairs(str(pairs), str(tmp_path / "one"), top=0.5)
    for number in (1, 2, 3):
        filter_pairs(str(pairs), str(tmp_path / "shards"), top=0.5, shard=Shard(number, 3))
    assert kept_rows(tmp_path / "shards") == kept_rows(tmp_path / "one")


def test_a_killed_run_goes_on_to_equal_rows(pairs, tmp_path, monkeypatch):
    filter_pairs(str(pairs), str(tmp_path / "one"), top=0.9)
    write, written = selected.write_part, []

    def stop_after_two(place, table):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(place)
        write(place, table)

    monkeypatch.setattr(selected, "write_part", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        filter_pairs(str(pairs), str(tmp_path / "kept"), top=0.9)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("part-*")}
    assert len(done) == 2
    monkeypatch.setattr(selected, "write_part", write)
    again = filter_pairs(str(pairs), str(tmp_path / "kept"), top=0.9)
    assert kept_rows(tmp_path / "kept") == kept_rows(tmp_path / "one")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert again.selection.kept == len(kept_rows(tmp_path / "kept"))


def test_the_output_is_read_as_embeddings_are(pairs, tmp_path):
    kept = filter_pairs(str(pairs), str(tmp_path / "kept"), top=0.5).selection.kept
    opened = open_embeddings(str(tmp_path / "kept"))
    assert sum(len(rows) for _, rows in opened.chunks()) == opened.count == kept
    filter_pairs(str(tmp_path / "kept"), str(tmp_path / "again"), top=0.5)
    assert kept_rows(tmp_path / "again").keys() < kept_rows(tmp_path / "kept").keys()


def test_another_rule_replaces_nothing_unless_asked_to(pairs, tmp_path):
    filter_pairs(str(pairs), str(tmp_path / "kept"), top=0.5)
    with pytest.raises(StoreError, match="holds another selection: pass --restart"):
        filter_pairs(str(pairs), str(tmp_path / "kept"), top=0.6)
    filter_pairs(str(pairs), str(tmp_path / "kept"), top=0.1, restart=True)
    assert len(kept_rows(tmp_path / "kept")) == 5


def test_bad_input_is_one_sentence(pairs, tmp_path):
    plain = write_parts(tmp_path / "plain", IMAGES)
    none = write_parts(tmp_path / "none", IMAGES, np.full_like(TEXTS, np.nan))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    for source, output, options, error, message in (
        (pairs, "kept", {}, ValueError, "give either a least score or a fraction"),
        (pairs, "kept", {"top": 0.5, "min_score": 0.1}, ValueError, "give either a least score or a fraction"),
        (pairs, "kept", {"top": 0.0}, ValueError, "the fraction to keep is 0: give more than 0"),
        (pairs, "kept", {"min_score": 2.0}, ValueError, "the least score is 2: give a cosine"),
        (plain, "kept", {"top": 0.5}, StoreError, "plain has no embeddings of texts: embed it with --text-column"),
        (none, "kept", {"top": 0.5}, StoreError, "none has no pair of an image and a text"),
        (pairs, "pairs", {"top": 0.5}, StoreError, "pairs is the source itself"),
        (pairs, "plain", {"top": 0.5}, StoreError, "plain holds embeddings of its own: choose another output"),
        (pairs, "full", {"top": 0.5}, StoreError, "full holds notes.txt and is no selection"),
        (tmp_path / "nowhere", "kept", {"top": 0.5}, StoreError, "nowhere has no _hf_clip.json"),
    ):
        with pytest.raises(error, match=message):
            filter_pairs(str(source), str(tmp_path / output), **options)
    assert not (tmp_path / "kept").exists()
    assert len(kept_rows(plain)) == 45
