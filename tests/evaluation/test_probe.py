import sys
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.data_sets import class_folders
from support.photos import load

from hf_clip.data.rows import DataError
from hf_clip.evaluation import embeddings, linear_probe, probe
from hf_clip.utils.packages import MissingPackageError


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits(n_class=4)
    return data.data[:300] / 16, data.target[:300]


def test_the_search_finds_the_best_of_a_dense_grid(digits):
    (features, targets), sweep = digits, {}
    fitted, held = probe.split(targets, 0)

    def measure(C: float) -> float:
        return probe.fit(features[fitted], targets[fitted], C).score(features[held], targets[held])

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        found = probe.search(measure, sweep)
    dense = {10**exponent: measure(10**exponent) for exponent in np.linspace(-6, 6, 25)}
    assert sweep[found] >= max(dense.values()) - 1e-9
    assert len(sweep) <= 15


def test_a_fifth_of_each_class_is_held_out():
    targets = np.repeat([0, 1, 2, 3], [50, 5, 2, 1])
    fitted, held = probe.split(targets, 0)
    assert sorted([*fitted, *held]) == list(range(58))
    assert np.bincount(targets[held], minlength=4).tolist()[:2] == [10, 1]
    assert 57 in fitted  # of a single image nothing can be held out
    assert not np.array_equal(held, probe.split(targets, 1)[1])


def test_the_probe_needs_scikit_learn(repositories, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    photos = class_folders(tmp_path / "photos", each=4)
    with pytest.raises(MissingPackageError, match=r"pip install"):
        linear_probe(*load(repositories["tiny ViT"]), photos, photos)


def test_shots_are_exact_and_reproducible(repositories, family, tmp_path):
    model = load(repositories[family])
    train, test = class_folders(tmp_path / "train", each=6), class_folders(tmp_path / "test")
    first, second = (linear_probe(*model, train, test, shots=4, seed=3) for _ in range(2))
    assert first.settings["train_images"] == 8
    assert first.metrics == second.metrics
    assert first.details["sweep"] == second.details["sweep"]
    assert set(first.metrics) == {"lp_acc1", "lp_mean_per_class_recall"}
    assert first.metrics["lp_acc1"] == 1.0  # two plain colors


def test_features_are_those_before_the_projection(repositories, tmp_path):
    """Of hidden_size for a ViT; a ResNet's attention pool projects, so they are its embeddings."""
    from hf_clip.data.read import read_rows

    rows = read_rows(class_folders(tmp_path / "photos"))
    vit, resnet = (load(repositories[name]) for name in ("tiny ViT", "tiny ResNet"))
    store = tmp_path / "store"
    found = embeddings.image_embeds(*vit, rows, normalize=False, projected=False, store=store)
    assert found.shape == (6, vit[0].config.vision_config.hidden_size)
    projected = vit[0].visual_projection(found).detach()
    np.testing.assert_allclose(projected, embeddings.image_embeds(*vit, rows, normalize=False), rtol=0, atol=1e-5)
    before, after = (
        embeddings.image_embeds(*resnet, rows, normalize=False, projected=value, store=store) for value in (False, True)
    )
    np.testing.assert_array_equal(before, after)


def test_bad_input_is_refused_by_name(repositories, tmp_path):
    model = load(repositories["tiny ViT"])
    folder = class_folders(tmp_path / "photos")
    with pytest.raises(DataError, match=r"blue square has 3 images .*: choose fewer shots"):
        linear_probe(*model, folder, folder, shots=4)
    other = class_folders(tmp_path / "other")
    (other / "red_circle").rename(other / "round")
    with pytest.raises(DataError, match="has other classes than"):
        linear_probe(*model, folder, other)
    with pytest.raises(DataError, match="too few to hold some out"):
        linear_probe(*model, folder, folder, shots=1)


def test_a_class_that_was_never_seen_scores_lowest(digits):
    features, targets = digits
    seen = targets != 3
    scores = probe.class_scores(probe.fit(features[seen], targets[seen], 1.0), features[:5], 4)
    assert scores.isfinite().all()
    assert (scores.argmin(1) == 3).all()


def test_one_shot_needs_a_strength_and_embeds_what_is_drawn(repositories, tmp_path, monkeypatch):
    """All images were embedded before it was known that there are too few to search C."""
    model, counts = load(repositories["tiny ViT"]), []
    embed = probe.image_embeds

    def count(model, processor, rows, **options):
        counts.append(len(rows))
        return embed(model, processor, rows, **options)

    monkeypatch.setattr(probe, "image_embeds", count)
    folder = class_folders(tmp_path / "photos", each=5)
    with pytest.raises(DataError, match="too few to hold some out: give validation images, or C"):
        linear_probe(*model, folder, folder, shots=1)
    assert counts == []
    result = linear_probe(*model, folder, folder, shots=1, C=1.0)
    assert counts == [2, 10]
    assert result.metrics["lp_acc1"] == 1
