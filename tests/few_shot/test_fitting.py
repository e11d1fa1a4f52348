"""The choice among heads, and what is measured beside it."""

import pytest
import torch
from support.embeddings import cones

from hf_clip.few_shot.fitting import AUTO, fit_head
from hf_clip.few_shot.heads import FEW_SHOT_HEADS
from hf_clip.metrics.outcomes import Outcomes

EMBEDS, TARGETS, AXES = cones([8, 8, 8], noise=0.3)
ROWS = {"few_shot", "zero_shot", "linear_probe"}


def share(hits: dict[str, Outcomes], name: str) -> float:
    return float(hits[name].hits.mean())


def test_all_heads_are_measured_on_the_same_pictures():
    fitted = fit_head(100 * EMBEDS @ AXES.T, EMBEDS, TARGETS)
    assert fitted.hits.keys() == ROWS | FEW_SHOT_HEADS.keys()
    assert {len(outcome.hits) for outcome in fitted.hits.values()} == {24}
    assert share(fitted.hits, "few_shot") >= 0.9


def test_pictures_help_where_texts_are_wrong():
    """The texts call each class by another's name: pictures alone tell them apart."""
    fitted = fit_head(100 * EMBEDS @ AXES.roll(1, 0).T, EMBEDS, TARGETS)
    assert share(fitted.hits, "zero_shot") <= 0.2
    assert share(fitted.hits, "few_shot") >= 0.9
    assert fitted.blend.weight >= 0.8


def test_labels_without_sense_do_not_pass_for_knowledge():
    """What is held out is not seen, so labels drawn by lot are guessed as often as by chance."""
    drawn = torch.randint(0, 3, (120,), generator=torch.Generator().manual_seed(5))
    embeds = cones([40, 40, 40], seed=6)[0]
    fitted = fit_head(100 * embeds @ AXES.T, embeds, drawn)
    assert all(share(fitted.hits, name) < 0.48 for name in fitted.hits)


@pytest.mark.parametrize("name", FEW_SHOT_HEADS)
def test_a_head_can_be_asked_for(name):
    fitted = fit_head(100 * EMBEDS @ AXES.T, EMBEDS, TARGETS, name)
    assert fitted.name == name
    assert fitted.hits.keys() == ROWS | {name, "logistic"}


@pytest.mark.parametrize("name", [AUTO, *FEW_SHOT_HEADS])
def test_one_picture_of_each_class_is_fitted_and_not_measured(name):
    embeds, targets, axes = cones([1, 1, 1])
    fitted = fit_head(100 * embeds @ axes.T, embeds, targets, name)
    assert (fitted.blend.weight, fitted.hits) == (0.5, {})
