"""An index of what `embed` wrote: built, brought up to date, searched, refused to another model."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
from support.originals import FAMILIES
from support.photos import READABLE, draw, load, make_photos

from hf_clip import ImageIndex, OtherModelError, embed_texts
from hf_clip.data.sources import open_source
from hf_clip.embedding.engine import EmbedOptions, Pending, embed_source, run_here
from hf_clip.embedding.files import FileStore
from hf_clip.embedding.identity import store_settings
from hf_clip.embedding.reading import open_embeddings
from hf_clip.embedding.stores import OUTPUT_SUFFIXES, StoreError
from hf_clip.search import graph
from hf_clip.search.storage import SearchError

pytest.importorskip("pyarrow")
TEXTS = ["a red car", "snow", "two dogs on a beach"]


def embedded(folder, output, model, processor) -> dict[str, np.ndarray]:
    """Embed a folder's images as `hf-clip embed` does."""
    (folder / "broken.png").unlink(missing_ok=True)
    settings = store_settings(model, processor, "float32", True)
    run = partial(run_here, options=EmbedOptions("tiny"), load=lambda: (model, processor))
    with FileStore(output, settings, 1e-3) as store:
        embed_source(Pending(open_source(str(folder)), store), run)
    chunks = open_embeddings(str(output)).chunks()
    return {path: row for table, rows in chunks for path, row in zip(table["path"].to_pylist(), rows, strict=True)}


@pytest.fixture
def clip(repositories, family):
    return load(repositories[family])


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "photos")


def cosines_of(rows: dict[str, np.ndarray], query: np.ndarray) -> dict[str, float]:
    query = query.astype(np.float64) / np.linalg.norm(query)
    return {path: float(row.astype(np.float64) @ query) for path, row in rows.items()}


@pytest.mark.parametrize("kind", ["exact", "int8", "hnsw"])
@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_sums_of_texts_and_images_find_the_nearest(clip, photos, suffix, kind, tmp_path):
    if kind == "hnsw":
        pytest.importorskip("usearch")
    rows = embedded(photos, tmp_path / f"f{suffix}", *clip)
    index = ImageIndex.build(tmp_path / f"f{suffix}", tmp_path / "i", *clip, kind=kind)
    assert len(index) == len(READABLE)
    red, snow, dogs = embed_texts(*clip, TEXTS).numpy()
    reference = rows["0.png"]
    for query, expected in [
        ({"text": TEXTS[0]}, red),
        ({"text": [(TEXTS[0], 2), TEXTS[2]], "minus": TEXTS[1]}, 2 * red + dogs - snow),
        ({"image": str(photos / "0.png")}, reference),
        ({"text": TEXTS[0], "image": [(photos / "0.png", 0.5)]}, red + reference / 2),
    ]:
        hits = index.search(**query, k=4)
        cosines = cosines_of(rows, expected)
        assert len({hit["path"] for hit in hits}) == 4
        np.testing.assert_allclose([hit["score"] for hit in hits], [cosines[hit["path"]] for hit in hits], atol=1e-6)
        # the tiny ResNet sees these photos alike up to 1e-8: their order is compared by score
        np.testing.assert_allclose([hit["score"] for hit in hits], sorted(cosines.values())[:-5:-1], atol=1e-6)


def test_an_index_answers_texts_by_its_own_tower(clip, photos, tmp_path):
    embedded(photos, tmp_path / "f.npy", *clip)
    whole = ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip)
    alone = ImageIndex.load(tmp_path / "i")
    query = {"text": [(TEXTS[0], 2), TEXTS[2]], "minus": TEXTS[1]}
    scores = [hit["score"] for hit in whole.search(**query)]
    assert [hit["score"] for hit in alone.search(**query)] == pytest.approx(scores, abs=1e-6)
    with pytest.raises(ValueError, match="only the text tower is loaded"):
        alone.search(image=photos / "0.png")


def test_a_tower_that_numpy_cannot_repeat_is_not_kept(clip, photos, tmp_path):
    embedded(photos, tmp_path / "f.npy", *clip)
    model = copy.deepcopy(clip[0]).bfloat16()
    ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", model, clip[1])
    with pytest.raises(SearchError, match="has no text tower: load it with the model that made it"):
        ImageIndex.load(tmp_path / "i")


def test_a_text_tower_searches_by_text(clip, repositories, family, photos, tmp_path):
    from hf_clip.loading import load_text_tower

    embedded(photos, tmp_path / "f.npy", *clip)
    whole = ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip)
    tower, tokenizer = load_text_tower(repositories[family])
    assert not hasattr(tower, "vision_model")
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    index = ImageIndex.load(tmp_path / "i", tower, tokenizer)
    assert index.search(TEXTS[0], k=3) == whole.search(TEXTS[0], k=3)
    with pytest.raises(ValueError, match="only the text tower is loaded"):
        index.search(image=str(photos / "0.png"))


def test_conditions_select_rows_in_any_kind(clip, photos, tmp_path):
    embedded(photos, tmp_path / "f.npy", *clip)
    index = ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip)
    hits = index.search(TEXTS[0], where=[("path", "<", "d")])
    assert {hit["path"] for hit in hits} == {path for path in READABLE if path < "d"}
    assert index.search(TEXTS[0], where=[("path", "=", "nowhere")]) == []


@pytest.mark.parametrize("kind", ["exact", "int8", "hnsw"])
def test_only_new_and_changed_images_are_inserted_unless_most_are_gone(clip, photos, kind, tmp_path, monkeypatch):
    if kind == "hnsw":
        pytest.importorskip("usearch")
    added, grow = [], graph.grow
    monkeypatch.setattr(graph, "grow", lambda tree, rows: added.append(len(rows) - len(tree)) or grow(tree, rows))
    output = tmp_path / "f.npy"

    def build() -> ImageIndex:
        embedded(photos, output, *clip)
        return ImageIndex.build(output, tmp_path / "i", *clip, kind=kind)

    assert build().settings["inserted"] == 7
    assert build().settings["inserted"] == 0
    draw(photos / "aa.png", 20)
    index = build()
    assert index.settings["inserted"] == 1
    assert index.columns["path"].to_pylist() == [*READABLE, "aa.png"]
    fresh = ImageIndex.build(output, tmp_path / "fresh", *clip, kind=kind)
    mine, theirs = ({h["path"]: h["score"] for h in i.search(TEXTS[0])} for i in (index, fresh))
    assert mine == theirs
    draw(photos / "aa.png", 21)
    (photos / "0.png").unlink()
    index = build()
    assert (index.settings["inserted"], len(index)) == (1, 7)
    assert index.columns["path"].to_pylist() == [*READABLE[1:], "aa.png"]
    fresh = ImageIndex.build(output, tmp_path / "fresh", *clip, kind=kind)
    mine, theirs = ({h["path"]: h["score"] for h in i.search(TEXTS[0])} for i in (index, fresh))
    assert mine == theirs
    for name in READABLE[1:6]:
        (photos / name).unlink()
    assert build().settings["inserted"] == 2
    if kind == "hnsw":
        assert added == [7, 0, 1, 8, 1, 1, 2]


def test_rows_of_half_precision_are_unit_vectors(clip, photos, tmp_path):
    rows = embedded(photos, tmp_path / "f.npy", *clip)
    index = ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip, dtype="float16")
    assert index.rows.dtype == np.float16
    np.testing.assert_allclose(index.rows, np.stack(list(rows.values())), atol=1e-3)


def test_another_model_is_refused(repositories, photos, tmp_path):
    clip, other = (load(repositories[family]) for family in FAMILIES)
    embedded(photos, tmp_path / "f.npy", *clip)
    with pytest.raises(OtherModelError, match=rf"made with another model \({repositories[FAMILIES[0]]}\), not "):
        ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *other)
    assert not (tmp_path / "i").exists()
    ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip)
    with pytest.raises(OtherModelError):
        ImageIndex.load(tmp_path / "i", *other)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "there is nothing to search for"),
        ({"text": ["a cat", " "]}, "a text of the query is empty"),
        ({"text": "a cat", "minus": "a cat"}, "cancel each other"),
        ({"text": "a cat", "k": 0}, "k is 0: ask for at least 1"),
    ],
)
def test_an_empty_query_is_named(clip, photos, query, message, tmp_path):
    embedded(photos, tmp_path / "f.npy", *clip)
    index = ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip)
    with pytest.raises(ValueError, match=message):
        index.search(**query)


def test_what_is_no_index_and_what_are_no_embeddings_is_named(clip, tmp_path):
    with pytest.raises(ValueError, match=r"there is no index at .*nowhere: make one with hf-clip index"):
        ImageIndex.load(tmp_path / "nowhere", *clip)
    with pytest.raises(StoreError, match="there are no embeddings at"):
        ImageIndex.build(tmp_path / "nowhere", tmp_path / "i", *clip)
    np.save(tmp_path / "f.npy", np.eye(3))
    with pytest.raises(StoreError, match=r"lacks the f\.npy\.index\.jsonl"):
        ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        ImageIndex.load(tmp_path, *clip)


def test_an_embedding_of_zero_is_named_and_leaves_no_index(clip, photos, tmp_path):
    embedded(photos, tmp_path / "f.npy", *clip)
    rows = np.load(tmp_path / "f.npy")
    rows[2] = 0
    np.save(tmp_path / "f.npy", rows)
    record = tmp_path / "f.npy.index.jsonl"
    settings, *lines = record.read_text().splitlines(keepends=True)
    # as of a version that did not record which output it belongs to
    record.write_text("".join([json.dumps(json.loads(settings) | {"output": None}) + "\n", *lines]))
    with pytest.raises(ValueError, match=f"the embedding of {READABLE[2]} is zero or not finite"):
        ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip)
    assert not list(tmp_path.glob("*i*")) or not (tmp_path / "i").exists()
    assert json.loads((tmp_path / "f.npy.index.jsonl").read_text().splitlines()[0])["dim"] == 64


def test_cutoff_auto_keeps_images_that_stand_out(clip, tmp_path):
    """Of fifty photos of noise few stand out for a text."""
    (tmp_path / "noise").mkdir()
    for seed in range(50):
        draw(tmp_path / "noise" / f"{seed:02}.png", seed)
    embedded(tmp_path / "noise", tmp_path / "f.npy", *clip)
    index = ImageIndex.build(tmp_path / "f.npy", tmp_path / "i", *clip)
    every = index.search(TEXTS[0], k=50)
    kept = index.search(TEXTS[0], k=50, cutoff="auto")
    assert [hit["row"] for hit in kept] == [hit["row"] for hit in every if hit["row"] in {each["row"] for each in kept}]
    assert len(kept) < 10
    assert all(0 <= hit["chance"] <= 0.1 * len(kept) for hit in kept)
    with pytest.raises(ValueError, match="3 images are too few to tell which stand out"):
        index.search(TEXTS[0], cutoff="auto", where=[("path", "in", ["00.png", "01.png", "02.png"])])
    for most in (0.5, 5):
        best = index.search(TEXTS[0], k=50, cutoff=most)
        scores = [hit["score"] for hit in best]
        assert scores == sorted(scores, reverse=True)
        assert all(hit["chance"] <= most for hit in best)
    assert 0 < len(best) < 50
    for wrong in ("best", 0, float("nan")):
        with pytest.raises(ValueError, match=f"cutoff is {wrong!r}: choose auto, or the most images"):
            index.search(TEXTS[0], cutoff=wrong)
