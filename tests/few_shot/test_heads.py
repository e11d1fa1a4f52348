"""Each head against its formula."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from support.embeddings import cones

from hf_clip.few_shot.heads import FEW_SHOT_HEADS

EMBEDS, TARGETS, _ = cones([4, 6, 3])
QUERIES = cones([2, 2, 2], seed=1)[0]


def test_prototypes_are_means_of_length_one():
    head = FEW_SHOT_HEADS["prototypes"].fit(EMBEDS, TARGETS, 3, 1.0)
    for number in range(3):
        mean = EMBEDS[number == TARGETS].mean(0)
        torch.testing.assert_close(head.weight[number], mean / mean.norm())
    torch.testing.assert_close(head(QUERIES), QUERIES @ head.weight.T)


def test_ridge_is_the_closed_form():
    head = FEW_SHOT_HEADS["ridge"].fit(EMBEDS, TARGETS, 3, 0.5)
    x, y = EMBEDS.double(), torch.nn.functional.one_hot(TARGETS).double()
    centered = x - x.mean(0)
    weight = torch.linalg.solve(centered.T @ centered + 0.5 * torch.eye(16).double(), centered.T @ (y - y.mean(0)))
    expected = (QUERIES.double() - x.mean(0)) @ weight + y.mean(0)
    torch.testing.assert_close(head(QUERIES).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_gives_the_probabilities_of_scikit_learn(classes):
    known = classes > TARGETS
    head = FEW_SHOT_HEADS["logistic"].fit(EMBEDS[known], TARGETS[known], classes, 10.0)
    fitted = LogisticRegression(C=10.0, max_iter=1000).fit(EMBEDS[known].numpy(), TARGETS[known].numpy())
    np.testing.assert_allclose(head(QUERIES).softmax(1), fitted.predict_proba(QUERIES.numpy()), atol=1e-5)


def test_the_cache_is_the_published_formula():
    head = FEW_SHOT_HEADS["cache"].fit(EMBEDS, TARGETS, 3, 5.5)
    for query, scores in zip(QUERIES, head(QUERIES), strict=True):
        expected = torch.zeros(3)
        for key, target in zip(EMBEDS, TARGETS, strict=True):
            expected[target] += torch.exp(-5.5 * (1 - query @ key))
        torch.testing.assert_close(scores, expected)
