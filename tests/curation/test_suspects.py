"""Wrong labels, near-duplicates and outliers that were put in are found, and few others."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support.data_sets import class_folders
from support.embeddings import cones
from support.photos import load

from hf_clip.curation import suspects as suspects_module
from hf_clip.curation.suspects import COLUMNS, find_suspects, outliers, sheet_images, write_suspects, wrong_labels
from hf_clip.data.read import read_rows
from hf_clip.data.rows import DataError
from hf_clip.few_shot.fitting import held_out_probabilities
from hf_clip.model.modeling_hf_clip_base import normalize


def test_confident_learning_by_hand():
    """Thresholds of the classes are the means of their own probabilities: 0.58, 0.7 and 0.5."""
    probabilities = torch.tensor(
        [[0.9, 0.1, 0.0], [0.25, 0.75, 0.0], [0.2, 0.8, 0.0], [0.4, 0.6, 0.0], [0.2, 0.3, 0.5], [0.6, 0.0, 0.4]]
    )
    targets = torch.tensor([0, 0, 1, 1, 2, 0])
    wrong, better, margins = wrong_labels(probabilities, targets)
    # the fourth reaches no threshold; the second reaches that of class 1
    assert (wrong.tolist(), better.tolist()) == ([1], [1])
    assert margins.tolist() == pytest.approx([0.5])


def test_flipped_labels_of_digits_are_found():
    data = load_digits()
    embeds = normalize(torch.from_numpy(data.data - data.data.mean(0)).float())[:400]
    right = torch.from_numpy(data.target[:400]).long()
    rng = np.random.default_rng(0)
    flipped = rng.permutation(400)[:20]
    given = right.clone()
    given[flipped] = (given[flipped] + torch.from_numpy(rng.integers(1, 10, 20))) % 10
    places, probabilities = held_out_probabilities(torch.zeros(400, 10), embeds, given)
    wrong, better, _ = wrong_labels(probabilities, given[places])
    named = set(places[wrong].tolist())
    found = named & set(flipped.tolist())
    assert len(found) / len(named) > 0.85
    assert len(found) / 20 > 0.6
    assert (better == right[places][wrong]).float().mean() > 0.85


def test_outliers_are_unlike_all_others():
    embeds = cones([30, 30], noise=0.1)[0]
    odd = normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(9)))
    far, scores = outliers(torch.cat([embeds, odd]))
    assert {60, 61} <= set(far.tolist())
    assert len(far) <= 5
    assert (scores < -3.5).all()


def test_nothing_is_found_among_equal_images():
    assert outliers(torch.ones(10, 4) / 2)[0].tolist() == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return read_rows(class_folders(tmp_path_factory.mktemp("suspects") / "photos", each=12))


@pytest.fixture
def known(monkeypatch, photos):
    """Embeddings by the image: two cones, with one image of each class labeled as the other."""
    embeds, _, _ = cones([12, 12], dim=64, noise=0.08)
    by_name = {row.name: row_embeds for row, row_embeds in zip(photos, embeds, strict=True)}
    monkeypatch.setattr(
        suspects_module,
        "image_embeds",
        lambda model, processor, rows, **_: torch.stack([by_name[r.name] for r in rows]),
    )
    return by_name


def relabeled(rows, *places):
    """The data set with other labels at some places."""
    changed = [
        dataclasses.replace(row, label=1 - row.label) if place in places else row for place, row in enumerate(rows)
    ]
    return dataclasses.replace(rows, rows=changed)


def test_wrong_labels_come_with_the_right_one(repositories, photos, known):
    told = []
    found = find_suspects(*load(repositories["tiny ViT"]), relabeled(photos, 3, 20), threshold=1.0, report=told.append)
    assert len(told) == 1
    named = {one.row.name: (one.label, one.suggestion) for one in found if one.kind == "label"}
    assert named == {
        photos[3].name: ("red circle", "blue square"),
        photos[20].name: ("blue square", "red circle"),
    }


def test_near_duplicates_across_splits_and_labels(repositories, photos, known):
    train = dataclasses.replace(photos, rows=[*photos.rows[:8], *photos.rows[12:20]], name="train")
    test = dataclasses.replace(photos, rows=[*photos.rows[8:12], *photos.rows[20:]], name="test")
    for name, place in ((photos[9].name, 0), (photos[10].name, 1), (photos[5].name, 4)):
        known[name] = known[photos[place].name]
    found = find_suspects(*load(repositories["tiny ViT"]), [relabeled(train, 5), test], threshold=0.999)
    named = {
        (one.kind, one.split, one.row.name, one.suggestion) for one in found if one.kind not in ("label", "outlier")
    }
    assert named == {
        ("split", "test", photos[9].name, photos[0].name),
        ("split", "test", photos[10].name, photos[1].name),
        ("conflict", "train", photos[5].name, photos[4].name),
    }
    kinds = [one.kind for one in found]
    assert kinds == sorted(kinds, key=("label", "conflict", "split", "outlier").index)


def test_the_csv_and_the_sheet_have_each_suspect(repositories, photos, known, tmp_path):
    known[photos[13].name] = known[photos[12].name]
    found = find_suspects(*load(repositories["tiny ViT"]), relabeled(photos, 3, 13), threshold=0.999)
    write_suspects(found, tmp_path / "suspects.csv")
    rows = list(csv.DictReader((tmp_path / "suspects.csv").open(encoding="utf-8")))
    assert [(row["path"], row["kind"]) for row in rows] == [(one.row.name, one.kind) for one in found]
    assert tuple(rows[0]) == COLUMNS
    captions = [caption for _, caption in sheet_images(found, 100)]
    assert any("red circle, or blue square?" in caption for caption in captions)
    [place] = [place for place, caption in enumerate(captions) if "nearly the same as the next" in caption]
    assert captions[place + 1] == f"conflict: {photos[12].name}"
    assert len(sheet_images(found, 1)) < len(captions)


def test_bad_input_is_one_sentence(repositories, photos, known):
    model = load(repositories["tiny ViT"])
    other = dataclasses.replace(photos, labels=["a", "b"], name="other")
    with pytest.raises(DataError, match="other has other classes than "):
        find_suspects(*model, [photos, other])
    with pytest.raises(DataError, match="has one class, one"):
        find_suspects(*model, dataclasses.replace(photos, rows=photos.rows[:12], labels=["one"]))


@pytest.mark.parametrize(("agreement", "trusted"), [(0.95, True), (0.72, False)])
def test_heads_that_are_often_wrong_are_not_trusted(agreement, trusted):
    told = suspects_module._trust(agreement)
    assert told.startswith(f"the heads agree with {agreement:.0%} of the labels")
    assert ("too few to trust" in told) != trusted
