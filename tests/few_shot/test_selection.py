"""Held-out pictures, and the blend that they choose."""

import numpy as np
import torch
from support.embeddings import cones

from hf_clip.few_shot.selection import HeldOut, crossed_hits, fold_numbers, held_out_scores

COUNTS = [10, 2, 1, 7]
EMBEDS, TARGETS, AXES = cones(COUNTS)
FOLDS = fold_numbers(TARGETS, 5, seed=0)


def held_out(texts: torch.Tensor, pictures: torch.Tensor) -> HeldOut:
    """Blends of two tables of scores, for which the classes in turn are right."""
    targets = torch.arange(len(texts)) % texts.shape[1]
    return HeldOut.of(texts, {1.0: pictures}, targets, np.arange(len(texts)) % 3)


def right(n: int = 30, classes: int = 3, noise: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Scores of which most are right."""
    sure = 3 * torch.nn.functional.one_hot(torch.arange(n) % classes, classes)
    return sure + noise * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def test_folds_have_the_shares_of_the_classes():
    for number in range(5):
        assert np.bincount(TARGETS[number == FOLDS], minlength=4)[0] == 2
    assert sorted(FOLDS[10:12].tolist())[0] >= 0
    assert len(set(FOLDS[10:12].tolist())) == 2
    assert np.array_equal(FOLDS, fold_numbers(TARGETS, 5, seed=0))
    assert not np.array_equal(FOLDS, fold_numbers(TARGETS, 5, seed=1))


def test_the_only_picture_of_a_class_is_never_held_out():
    assert FOLDS[12] == -1
    assert (fold_numbers(torch.arange(4), 5, seed=0) == -1).all()


def test_no_picture_is_scored_by_a_head_that_was_fitted_to_it():
    def fit(rows):
        seen = EMBEDS[rows]
        return lambda embeds: (embeds @ seen.T).max(1, keepdim=True).values

    scores = held_out_scores(fit, EMBEDS, FOLDS)
    assert len(scores) == (FOLDS >= 0).sum()
    assert scores.max() < 1 - 1e-4
    for place, found in zip(np.flatnonzero(FOLDS >= 0), scores, strict=True):
        torch.testing.assert_close(found, fit(np.flatnonzero(FOLDS[place] != FOLDS))(EMBEDS[None, place])[0])


def test_the_weight_goes_to_the_side_that_is_right():
    noise = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    assert held_out(right(), noise).blend().weight <= 0.1
    assert held_out(noise, right()).blend().weight >= 0.9
    both = held_out(right(noise=2.0), right(noise=2.0, seed=2)).blend()
    assert 0.2 <= both.weight <= 0.8


def test_scores_of_any_scale_get_the_same_weight():
    texts, pictures = right(noise=2.0), right(noise=2.0, seed=2)
    one, other = held_out(texts, pictures).blend(), held_out(texts, 100 * pictures).blend()
    assert one.weight == other.weight
    np.testing.assert_allclose(one.of_pictures, 100 * other.of_pictures, rtol=1e-5)


def test_texts_that_tell_nothing_leave_it_to_the_pictures():
    blend = held_out(torch.zeros(30, 3), right()).blend()
    assert blend.of_pictures > 0


def test_losses_are_those_of_the_blend():
    texts, pictures = right(), right(seed=3)
    found = held_out(texts, pictures)
    (setting, weight, _), loss = found.best()
    blend = found.blend()
    logits = blend.of_texts * texts + blend.of_pictures * pictures
    logp, own = logits.log_softmax(1), torch.arange(30) % 3
    smoothed = 1 / 32
    expected = -(1 - smoothed) * logp.gather(1, own[:, None]).sum() - smoothed * logp.mean(1).sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_array_equal(found.hits[setting, weight], logits.argmax(1) == own)


def test_a_picture_is_judged_by_the_choice_of_the_other_folds():
    texts = right(noise=3.0)
    heads = [held_out(texts, right(noise=noise, seed=4)) for noise in (2.0, 3.0)]
    hits = crossed_hits(heads)
    for number in range(3):
        rows = np.arange(30) % 3 != number
        losses = [head.losses[..., rows].sum(-1, dtype=np.float64) for head in heads]
        chosen = heads[int(losses[1].min() < losses[0].min())]
        setting, weight, _ = np.unravel_index(losses[heads.index(chosen)].argmin(), losses[0].shape)
        np.testing.assert_array_equal(hits[~rows], chosen.hits[setting, weight, ~rows])


def test_without_texts_only_pictures_count():
    found = held_out(right(), torch.zeros(30, 3).index_fill_(1, torch.tensor(0), 1.0)).pictures_alone()
    assert found.blend().weight == 1
    assert crossed_hits([found]).tolist() == (np.arange(30) % 3 == 0).tolist()
