from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from hf_clip.metrics import classification_metrics, compute_classification_metrics, mean_average_precision


def test_classification_equals_brute_force_and_scikit_learn():
    logits, targets = torch.randn(60, 9, generator=torch.manual_seed(0)), torch.arange(60) % 7
    order = logits.argsort(1, descending=True)
    metrics = classification_metrics(logits, targets)
    assert metrics["acc1"] == (order[:, 0] == targets).double().mean().item()
    assert metrics["acc5"] == (order[:, :5] == targets[:, None]).any(1).double().mean().item()
    keep = logits[:, :7].argmax(1)
    ours = classification_metrics(logits[:, :7], targets)["mean_per_class_recall"]
    assert ours == pytest.approx(balanced_accuracy_score(targets, keep), abs=1e-12)
    assert "acc5" not in classification_metrics(logits[:, :4], targets % 4)


def test_mean_average_precision_equals_scikit_learn():
    generator = torch.manual_seed(0)
    scores, targets = torch.rand(50, 6, generator=generator), torch.rand(50, 6, generator=generator) > 0.6
    expected = average_precision_score(targets.numpy(), scores.numpy(), average="macro")
    assert mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)


def test_equal_scores_are_one_place_of_the_ranking():
    """Whatever the order of the images: a model of one score gets the share of positives, not 1.0."""
    targets = (torch.arange(20) < 5).int()[:, None]
    assert mean_average_precision(torch.zeros(20, 1), targets) == pytest.approx(0.25)
    scores = torch.randint(0, 4, (60, 5), generator=torch.manual_seed(0)).float()
    targets = torch.rand(60, 5, generator=torch.manual_seed(1)) > 0.6
    expected = average_precision_score(targets.numpy(), scores.numpy(), average="macro")
    assert mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)


def test_stock_trainer_takes_the_metrics():
    rows = np.eye(4, dtype=np.float32)
    found = compute_classification_metrics(SimpleNamespace(predictions=rows, label_ids=np.array([0, 1, 2, 2])))
    assert found == {"acc1": 0.75, "mean_per_class_recall": pytest.approx(5 / 6)}


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="targets go from 0 to 2"):
        classification_metrics(torch.eye(2), torch.tensor([0, 2]))
